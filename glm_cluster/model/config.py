"""What config.json says of a GLM checkpoint: every key of HF's `GlmConfig`, and those of `glm4`.

Knows no torch and loads no weights. Source: HF `GlmConfig`, `Glm4Config` (transformers 5.0.0rc1 and 5.23), whose names
and defaults these are.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from glm_cluster.errors import CheckpointError, ConfigError
from glm_cluster.model.chatglm_keys import hf_keys
from glm_cluster.model.rope_parameters import context_limit, rope_parameters

CONFIG_FILE = "config.json"
MODEL_TYPES = ("glm", "glm4")
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_pytorch_tanh", "relu")
ATTENTION = ("sdpa", "eager")
FLOAT_DTYPES = ("float32", "bfloat16", "float16", "float64")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
GLM4_EOS_TOKEN_IDS = (151329, 151336, 151338)  # <|endoftext|>, <|user|>, <|observation|>
_ARCHITECTURE = {"glm": "Glm", "glm4": "Glm4"}


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class GlmConfig:
    """The numbers that shape a model. Built from HF's keys, old or new: `GlmConfig(hidden_size=64, rope_theta=5e6)`.

    Frozen: `replace` gives a changed copy. Keys without a meaning here are kept in `extra` and written back. A value of
    a wrong type, or one that the forward pass could not honour, is a ConfigError that names its key.
    """

    model_type: str = "glm"
    vocab_size: int = 151552
    hidden_size: int = 4096
    intermediate_size: int = 13696
    num_hidden_layers: int = 40
    num_attention_heads: int = 32
    num_key_value_heads: int = 2  # None: as many as query heads
    head_dim: int = 128  # None: hidden_size // num_attention_heads
    hidden_act: str = "silu"
    attention_dropout: float = 0.0
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1.5625e-07
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: Mapping[str, Any] = field(default_factory=lambda: rope_parameters({}, 131072))
    pad_token_id: int | None = 151329
    eos_token_id: int | Sequence[int] | None = field(default_factory=lambda: list(GLM4_EOS_TOKEN_IDS))
    bos_token_id: int | None = None
    attention_bias: bool = True
    dtype: str | None = None  # of the stored weights
    attn_implementation: str = "sdpa"  # of the plain forward; not stored
    output_hidden_states: bool = False
    output_attentions: bool = False
    return_dict: bool = True
    id2label: Mapping[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})
    problem_type: str | None = None
    classifier_dropout: float | None = None
    hidden_dropout: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __init__(self, **keys: Any) -> None:
        for name, value in _resolve(keys).items():
            object.__setattr__(self, name, value)
        self._check()

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> Self:
        """From the parsed JSON of a config.json: HF's flat v4 keys, v5 `rope_parameters`, or THUDM's `chatglm` keys."""
        return cls(**(hf_keys(raw) if raw.get("model_type") == "chatglm" else raw))

    @classmethod
    def from_pretrained(cls, name_or_directory: str | Path) -> Self:
        """From the config.json of a directory, or of a hub repository where `huggingface_hub` is installed."""
        from glm_cluster.model.checkpoints.hub import resolve

        path = resolve(name_or_directory) / CONFIG_FILE
        try:
            return cls.from_mapping(read_json(path))
        except ConfigError as error:
            raise error if isinstance(error, CheckpointError) else CheckpointError(f"{path}: {error}") from error

    @classmethod
    def from_directory(cls, directory: Path) -> Self:
        """What a server goes by: config.json, with generation_config.json's end-of-sequence ids where it has some."""
        path = directory / CONFIG_FILE
        raw = read_json(path)
        generation = directory / "generation_config.json"
        if generation.is_file() and (eos := read_json(generation).get("eos_token_id")) is not None:
            raw["eos_token_id"] = eos
        try:
            config = cls.from_mapping(raw)
            config.check_pad()
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error.message}") from error
        return config

    def to_dict(self) -> dict[str, Any]:
        """The keys of transformers 5, ready for JSON."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_STORED}
        own = {name: value for name, value in own.items() if value is not None or name not in _OPTIONAL}
        own |= {name: value for name in _STORED_IF_SET if (value := getattr(self, name)) != _default(name)}
        own["rope_parameters"] = dict(self.rope_parameters)
        if not isinstance(self.eos_token_id, int | None):
            own["eos_token_id"] = list(self.eos_token_id)
        own["id2label"] = {str(index): label for index, label in self.id2label.items()}
        own["label2id"] = dict(self.label2id)
        return {**self.extra, **own}

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json, which transformers 5 and this class read alike."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=2, sort_keys=True)
        (Path(directory) / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    def replace(self, **changes: Any) -> Self:
        """A copy with some keys changed, checked like any other. Flat RoPE keys change those of `rope_parameters`."""
        keys: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        flat = {name: changes[name] for name in ("rope_theta", "partial_rotary_factor") if name in changes}
        keys["rope_parameters"] = {**self.rope_parameters, **flat}
        return type(self)(**{**self.extra, **keys, **changes})

    @property
    def rotary_dim(self) -> int:
        """How many leading dimensions of a head are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def rope_theta(self) -> float:
        """The base of the rotary frequencies."""
        return float(self.rope_parameters["rope_theta"])

    @property
    def partial_rotary_factor(self) -> float:
        """The rotated share of a head's dimensions."""
        return float(self.rope_parameters["partial_rotary_factor"])

    @property
    def context_limit(self) -> int:
        """Most tokens of a sequence: `max_position_embeddings`, stretched where the RoPE scaling stretches it."""
        return context_limit(self.rope_parameters, self.max_position_embeddings)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end-of-sequence ids, none, one or several, as a tuple."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The ids with which a model ends and pads; a negative one, a row counted from the end, names no token."""
        pad = () if self.pad_token_id is None or self.pad_token_id < 0 else (self.pad_token_id,)
        return (*self.eos_token_ids, *pad)

    @property
    def num_labels(self) -> int:
        """Outputs of a classification head."""
        return len(self.id2label)

    @property
    def label2id(self) -> Mapping[str, int]:
        """The inverse of `id2label`."""
        return {label: index for index, label in self.id2label.items()}

    @property
    def has_sublayer_norms(self) -> bool:
        """Whether the outputs of attention and MLP are normalised before they join the residual (glm4)."""
        return self.model_type == "glm4"

    def architecture(self, kind: str) -> str:
        """HF's class name for a kind of model: `Model`, `ForCausalLM`, ..."""
        return _ARCHITECTURE[self.model_type] + kind

    def legal_tp_sizes(self) -> tuple[int, ...]:
        """Group sizes that divide this model: whole query heads, whole or replicated KV heads, whole MLP columns."""
        return tuple(n for n in range(1, self.num_attention_heads + 1) if self._divides(n))

    def check_tp(self, size: int) -> None:
        """Refuse a group size that does not divide this model."""
        if size not in self.legal_tp_sizes():
            raise ConfigError(
                f"tp {size} does not divide this model ({self.num_attention_heads} heads, "
                f"{self.num_key_value_heads} KV heads, {self.intermediate_size} MLP columns); "
                f"legal sizes are {', '.join(map(str, self.legal_tp_sizes()))}"
            )

    def check_pad(self) -> None:
        """Refuse a padding id without a row in the embedding."""
        if self.pad_token_id is not None and not -self.vocab_size <= self.pad_token_id < self.vocab_size:
            raise ConfigError(
                f"pad_token_id {self.pad_token_id} lies outside the vocabulary of {self.vocab_size}; "
                "set it to an id within"
            )

    def _divides(self, size: int) -> bool:
        kv = self.num_key_value_heads
        return (
            self.num_attention_heads % size == 0
            and (kv % size == 0 or size % kv == 0)
            and self.intermediate_size % size == 0
        )

    def _check(self) -> None:
        _check_choice("hidden_act", self.hidden_act, ACTIVATIONS)
        _check_choice("attn_implementation", self.attn_implementation, ATTENTION)
        if self.dtype is not None:
            _check_choice("dtype", self.dtype, FLOAT_DTYPES)
        if self.problem_type is not None:
            _check_choice("problem_type", self.problem_type, PROBLEM_TYPES)
        if self.problem_type == "single_label_classification" and self.num_labels == 1:
            raise ConfigError("single_label_classification needs two labels or more; for one, use regression")
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
        self._check_rope()

    def _check_rope(self) -> None:
        if self.rope_parameters["rope_type"] == "dynamic" and self.rotary_dim == 2:
            raise ConfigError(
                f"rope type 'dynamic' needs more than 2 rotated dimensions; partial_rotary_factor "
                f"{self.partial_rotary_factor} of {self.head_dim} leaves 2"
            )
        for name in ("short_factor", "long_factor"):
            factors = self.rope_parameters.get(name)
            if factors is not None and len(factors) != self.rotary_dim // 2:
                raise ConfigError(f"rope {name} must hold {self.rotary_dim // 2} numbers, not {len(factors)}")


_STORED_IF_SET = ("output_hidden_states", "output_attentions", "return_dict")
_NOT_STORED = ("extra", "attn_implementation", *_STORED_IF_SET)
_OPTIONAL = ("dtype", "problem_type", "classifier_dropout", "hidden_dropout")
_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_FRACTIONS = ("attention_dropout", "classifier_dropout", "hidden_dropout")
_NUMBERS = ("initializer_range", "rms_norm_eps", *_FRACTIONS)
_FLAGS = (
    "use_cache",
    "tie_word_embeddings",
    "attention_bias",
    "output_hidden_states",
    "output_attentions",
    "return_dict",
)
_TEXTS = ("model_type", "hidden_act", "attn_implementation", "problem_type", "dtype")
_IDS = ("pad_token_id", "bos_token_id")
_ROPE_KEYS = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")
_NULL_IS_MEANT = ("pad_token_id", "bos_token_id", *_OPTIONAL)


def _resolve(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Every field's value from HF's keys in any of their spellings."""
    names = {f.name for f in fields(GlmConfig)} - {"extra"}
    raw = _without_old_names(keys)
    given = {k: v for k, v in raw.items() if k in names and (v is not None or k in _NULL_IS_MEANT)}
    for name, value in given.items():
        _check_type(name, value)
    if (model_type := given.get("model_type", "glm")) not in MODEL_TYPES:
        served = ", ".join((*MODEL_TYPES, "chatglm"))
        raise ConfigError(f"model_type {model_type!r} is not one of the GLM family that is served ({served})")
    out = {name: given.get(name, _default(name)) for name in names}
    if raw.get("num_key_value_heads", 0) is None:
        out["num_key_value_heads"] = out["num_attention_heads"]
    if raw.get("head_dim", 0) is None:
        out["head_dim"] = out["hidden_size"] // out["num_attention_heads"]
    out["rope_parameters"] = rope_parameters(raw, out["max_position_embeddings"])
    out["id2label"] = _labels(raw)
    known = names | {*_ROPE_KEYS, "label2id", "num_labels"}
    out["extra"] = {k: v for k, v in raw.items() if k not in known}
    return out


def _without_old_names(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys with those of earlier versions under today's names, and a nested `extra` spread out."""
    raw = dict(keys)
    if isinstance(keys.get("extra"), Mapping):
        raw = {**raw.pop("extra"), **raw}
    for old, new in (("torch_dtype", "dtype"), ("_attn_implementation", "attn_implementation")):
        value = raw.pop(old, None)
        if raw.get(new) is None and value is not None:
            raw[new] = value
    if raw.get("dtype") is not None:
        raw["dtype"] = str(raw["dtype"]).removeprefix("torch.")
    return raw


def _default(name: str) -> Any:
    spec = GlmConfig.__dataclass_fields__[name]
    return spec.default_factory() if callable(spec.default_factory) else spec.default


def _check_type(name: str, value: object) -> None:
    if value is None:
        return
    if name in _COUNTS and not (_is_int(value) and value >= 1):  # type: ignore[operator]
        raise ConfigError(f"{name} must be a whole number of 1 or more, not {value!r}")
    if name in _NUMBERS and not (_is_number(value) and 0 <= value <= sys.float_info.max):  # type: ignore[operator]
        raise ConfigError(f"{name} must be a finite number of 0 or more, not {value!r}")
    if name in _FRACTIONS and value >= 1:  # type: ignore[operator]
        raise ConfigError(f"{name} must be below 1, not {value!r}")
    if name in _FLAGS and not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {value!r}")
    if name in _TEXTS and not isinstance(value, str):
        raise ConfigError(f"{name} must be a string, not {value!r}")
    if name in _IDS and not _is_int(value):
        raise ConfigError(f"{name} must be a token id, not {value!r}")
    if name == "eos_token_id":
        ids = [value] if isinstance(value, int) else value
        if not isinstance(ids, list | tuple) or not all(map(_is_int, ids)):
            raise ConfigError(f"eos_token_id must be an id or a list of ids, not {value!r}")


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def _labels(raw: Mapping[str, Any]) -> dict[int, str]:
    """`id2label` with whole-number keys in order, else LABEL_0, ... for `num_labels` (2 unless told)."""
    labels, count = raw.get("id2label"), raw.get("num_labels")
    if not isinstance(raw.get("label2id"), Mapping | None):
        raise ConfigError(f"label2id must map labels to indices, not {raw['label2id']!r}")
    if count is not None and not (_is_int(count) and count >= 1):
        raise ConfigError(f"num_labels must be a whole number of 1 or more, not {count!r}")
    if labels is None or (count is not None and _is_automatic(labels)):
        return {index: f"LABEL_{index}" for index in range(2 if count is None else count)}
    try:
        by_id = {int(index): label for index, label in labels.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"id2label must map indices to labels, not {labels!r}") from error
    if sorted(by_id) != list(range(len(by_id))) or not all(isinstance(label, str) for label in by_id.values()):
        raise ConfigError(f"id2label must name every index from 0 on by a string, not {labels!r}")
    if count is not None and count != len(by_id):
        raise ConfigError(f"num_labels is {count}, but id2label names {len(by_id)}; give one of them")
    return {index: by_id[index] for index in range(len(by_id))}


def _is_automatic(labels: object) -> bool:
    """Whether nobody named the labels, so that another number of them contradicts nothing."""
    return isinstance(labels, Mapping) and all(str(v) == f"LABEL_{k}" for k, v in labels.items())


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or a CheckpointError that names the file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; give a checkpoint directory in Hugging Face layout") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return raw
