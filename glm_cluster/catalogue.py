"""The recipes as a table for people and as rows for programs: what `glm-cluster models` prints.

Knows recipes. Refuses to know where models are: what is installed is told.
"""

from collections.abc import Collection, Iterable, Sequence

from glm_cluster.model.checkpoints.recipes import GpuSetup, HubSource, Recipe

HEAD = ("name", "type", "params", "context", "KV/token", "legal tp", "fits on (cards x GB)", "licence")
HERE = "*"
ROOM = "fits on: the fewest cards of a size that hold the weights and 8K tokens of context"


def table(recipes: Iterable[Recipe], *, installed: Collection[str] = ()) -> str:
    """Lay the recipes out in columns, within 120 characters, marking the installed ones."""
    recipes = list(recipes)
    lines = _aligned([HEAD, *(_cells(recipe, installed) for recipe in recipes)])
    notes = [ROOM]
    if any(recipe.name in installed for recipe in recipes):
        notes.append(f"{HERE} on this machine")
    return "\n".join([*lines, "", *notes])


def rows(recipes: Iterable[Recipe], *, installed: Collection[str] = ()) -> list[dict[str, object]]:
    """The recipes as JSON values, without their cards."""
    return [_row(recipe, installed) for recipe in recipes]


def _cells(recipe: Recipe, installed: Collection[str]) -> tuple[str, ...]:
    return (
        f"{recipe.name} {HERE}" if recipe.name in installed else recipe.name,
        recipe.model_type,
        _short_count(recipe.parameters),
        _binary(recipe.context),
        f"{recipe.kv_bytes_per_token / 1024:g} KiB",
        " ".join(map(str, recipe.legal_tp)),
        " ".join(map(_setup, recipe.gpus)),
        recipe.licence,
    )


def _row(recipe: Recipe, installed: Collection[str]) -> dict[str, object]:
    source = recipe.source
    return {
        "name": recipe.name,
        "title": recipe.title,
        "licence": recipe.licence,
        "source": source.repo if isinstance(source, HubSource) else f"{source.package}=={source.version}",
        "model_type": recipe.model_type,
        "dtype": recipe.dtype,
        "parameters": recipe.parameters,
        "weights_bytes": recipe.weights_bytes,
        "context": recipe.context,
        "kv_bytes_per_token": recipe.kv_bytes_per_token,
        "legal_tp": list(recipe.legal_tp),
        "gpus": [{"memory_gb": gpu.memory_gb, "tp": gpu.tp} for gpu in recipe.gpus],
        "installed": recipe.name in installed,
    }


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _setup(gpu: GpuSetup) -> str:
    return f"{gpu.tp}x{gpu.memory_gb}"


def _short_count(parameters: int) -> str:
    """134.5M, 1.47B, 9.40B, 32.6B: three digits, or as many as the number has."""
    unit, size = ("B", 1e9) if parameters >= 1e9 else ("M", 1e6)
    scaled = parameters / size
    return f"{scaled:.2f}{unit}" if scaled < 10 else f"{scaled:.1f}{unit}"


def _binary(tokens: int) -> str:
    """131072 tokens as 128K, and a million of them as 1M."""
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)
