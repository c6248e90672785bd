"""What a config says of its rotary embedding, in one spelling whatever the file's. Knows no torch.

Source: HF `RotaryEmbeddingConfigMixin` (transformers 5.23): v4 `rope_theta`, `rope_scaling` and
`partial_rotary_factor` fold into v5 `rope_parameters`.
"""

from collections.abc import Mapping
from typing import Any

from glm_cluster.errors import ConfigError

DEFAULT_THETA = 10000.0
LARGEST = 3.4028234663852886e38  # of fp32, in which angles are made
DEFAULT_PARTIAL_FACTOR = 0.5  # GlmConfig's own
_NEEDS_ORIGINAL = ("yarn", "longrope", "llama3")
_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_LISTS = ("short_factor", "long_factor")
_NULLABLE = ("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow")


def rope_parameters(raw: Mapping[str, Any], max_position_embeddings: int) -> dict[str, Any]:
    """`rope_type`, `rope_theta`, `partial_rotary_factor` and what the type needs, from config keys in any spelling."""
    given: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):
        value = raw.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{key} must be a mapping, not {value!r}")
        given |= _with_type(value or {})
    kind = given.get("rope_type", "default")
    if not isinstance(kind, str) or kind not in _REQUIRED:
        raise ConfigError(f"rope type {kind!r} is not supported; there are {', '.join(_REQUIRED)}")
    given["rope_type"] = kind
    _fill(given, raw, "rope_theta", DEFAULT_THETA)
    _fill(given, raw, "partial_rotary_factor", DEFAULT_PARTIAL_FACTOR)
    if kind in _NEEDS_ORIGINAL:
        original = raw.get("original_max_position_embeddings")  # beside the mapping it wins, as in HF
        given["original_max_position_embeddings"] = (
            original or given.get("original_max_position_embeddings") or max_position_embeddings
        )
    for name, value in given.items():
        _check(name, value)
    if missing := [name for name in _REQUIRED[kind] if given.get(name) is None]:
        raise ConfigError(f"rope type {kind!r} needs {', '.join(missing)} in rope_parameters")
    return given


def context_limit(rope: Mapping[str, Any], max_position_embeddings: int) -> int:
    """Positions a model may use. Interpolating types (linear, dynamic, yarn) stretch what the file gives as trained."""
    match rope["rope_type"]:
        case "yarn":
            return max(max_position_embeddings, int(rope["original_max_position_embeddings"] * rope["factor"]))
        case "linear" | "dynamic":
            return int(max_position_embeddings * rope["factor"])
        case _:
            return max_position_embeddings


def _with_type(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with v4's `type` under today's name too, so that of two mappings the later one's counts."""
    return {**rope, **({"rope_type": rope["type"]} if "type" in rope and "rope_type" not in rope else {})}


def _fill(given: dict[str, Any], raw: Mapping[str, Any], name: str, default: float) -> None:
    """What the mapping says, else the flat key, else the default."""
    if given.get(name) is None:
        value = raw.get(name)
        given[name] = default if value is None else value


def _check(name: str, value: object) -> None:
    if name in ("rope_type", "type") or (value is None and name in _NULLABLE):
        return
    if name == "truncate":
        if not isinstance(value, bool):
            raise ConfigError(f"rope truncate must be true or false, not {value!r}")
    elif name in _LISTS:
        if not isinstance(value, list | tuple) or not all(map(is_positive, value)):
            raise ConfigError(f"rope {name} must be a list of finite numbers above 0, not {value!r}")
    elif name in _KNOWN and not is_positive(value):
        raise ConfigError(f"{name} must be a finite number above 0, not {value!r}")


_KNOWN = (
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    *_NULLABLE,
)


def is_positive(value: object) -> bool:
    """Whether it is a number above 0 that fp32 can hold, which rules out infinity and NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST
