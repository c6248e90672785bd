"""What config.json says of a GLM checkpoint. Knows no torch and loads no weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from glm_cluster.errors import CheckpointError, ConfigError

GLM4_EOS_TOKEN_IDS = (151329, 151336, 151338)  # <|endoftext|>, <|user|>, <|observation|>


@dataclass(frozen=True, slots=True, kw_only=True)
class GlmConfig:
    """The numbers of HF's `GlmConfig` that shape the forward pass; defaults are glm-4-9b-chat's."""

    vocab_size: int = 151552
    hidden_size: int = 4096
    intermediate_size: int = 13696
    num_hidden_layers: int = 40
    num_attention_heads: int = 32
    num_key_value_heads: int = 2
    head_dim: int = 128
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1.5625e-07
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 0.5
    attention_bias: bool = True
    tie_word_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = GLM4_EOS_TOKEN_IDS
    dtype: str = "float32"  # of the stored weights

    @property
    def rotary_dim(self) -> int:
        """How many leading dimensions of a head are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @classmethod
    def from_directory(cls, directory: Path) -> Self:
        """Read `directory/config.json`, and the end-of-sequence ids of generation_config.json where it has some."""
        path = directory / "config.json"
        raw = _read_json(path)
        generation = directory / "generation_config.json"
        if generation.is_file() and (eos := _read_json(generation).get("eos_token_id")) is not None:
            raw["eos_token_id"] = eos
        try:
            return cls.from_mapping(raw)
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error.message}") from error

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> Self:
        """Accept HF's flat v4 keys (rope_theta, ...) and v5 `rope_parameters`; refuse what the forward cannot do."""
        if (model_type := raw.get("model_type", "glm")) != "glm":
            raise ConfigError(f"model_type {model_type!r} is not served; only 'glm' checkpoints are")
        if (act := raw.get("hidden_act", "silu")) != "silu":
            raise ConfigError(f"hidden_act {act!r} is not supported; GLM uses 'silu'")
        heads = raw.get("num_attention_heads", cls._default("num_attention_heads"))
        hidden = raw.get("hidden_size", cls._default("hidden_size"))
        given = {name: raw[name] for name in _PLAIN_KEYS if raw.get(name) is not None}
        if raw.get("head_dim", 0) is None:
            given["head_dim"] = hidden // heads
        if raw.get("num_key_value_heads", 0) is None:
            given["num_key_value_heads"] = heads
        config = cls(
            **{**given, **_rope(raw)},
            eos_token_ids=_ids(raw.get("eos_token_id"), default=cls._default("eos_token_ids")),
            dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        )
        config._check()
        return config

    @classmethod
    def _default(cls, name: str) -> Any:
        return cls.__dataclass_fields__[name].default

    def _check(self) -> None:
        for name in _INT_KEYS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} must be a whole number of 1 or more, not {value!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.rotary_dim < 2 or self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise ConfigError(
                f"partial_rotary_factor {self.partial_rotary_factor} rotates {self.rotary_dim} of {self.head_dim} "
                "dimensions; it must be an even number of them"
            )

    def legal_tp_sizes(self) -> tuple[int, ...]:
        """Group sizes that divide this model: whole query heads, whole or replicated KV heads, whole MLP columns."""
        return tuple(n for n in range(1, self.num_attention_heads + 1) if self._divides(n))

    def _divides(self, size: int) -> bool:
        kv = self.num_key_value_heads
        return (
            self.num_attention_heads % size == 0
            and (kv % size == 0 or size % kv == 0)
            and self.intermediate_size % size == 0
        )

    def check_tp(self, size: int) -> None:
        """Refuse a group size that does not divide this model."""
        if size not in self.legal_tp_sizes():
            raise ConfigError(
                f"tp {size} does not divide this model ({self.num_attention_heads} heads, "
                f"{self.num_key_value_heads} KV heads, {self.intermediate_size} MLP columns); "
                f"legal sizes are {', '.join(map(str, self.legal_tp_sizes()))}"
            )


_INT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_PLAIN_KEYS = (*_INT_KEYS, "rms_norm_eps", "attention_bias", "tie_word_embeddings")


def _rope(raw: Mapping[str, Any]) -> dict[str, float]:
    """Fold v4 and v5 spellings; a rope type other than `default` is refused rather than computed wrongly."""
    rope: dict[str, Any] = {
        **(raw.get("rope_scaling") or {}),
        **(raw.get("rope_parameters") or {}),
    }
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ConfigError(f"rope type {kind!r} is not supported yet; only 'default' is")
    out = {}
    for name in ("rope_theta", "partial_rotary_factor"):
        value = rope.get(name, raw.get(name))
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise ConfigError(f"{name} must be a number above 0, not {value!r}")
        out[name] = float(value)
    return out


def _ids(value: object, *, default: tuple[int, ...]) -> tuple[int, ...]:
    if value is None:
        return default
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) for i in ids):
        raise ConfigError(f"eos_token_id must be an id or a list of ids, not {value!r}")
    return tuple(ids)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; give a checkpoint directory in Hugging Face layout") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return raw
