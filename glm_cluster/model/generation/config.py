"""What generation_config.json says: how a model continues a prompt. Knows no torch, no model and no tokenizer.

The keys and their meaning are Hugging Face's. None means unset: `generate` fills it from the model's own configuration,
then from HF's defaults. Keys we do not act on live in `extra`, so that a file survives the round trip.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, Self

from glm_cluster.errors import CheckpointError, ConfigError

FILE_NAME = "generation_config.json"

# What HF acts on and we do not, each with the values that ask for nothing.
UNIMPLEMENTED: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "constraints": (None,),
    "force_words_ids": (None,),
    "penalty_alpha": (None, 0),
    "dola_layers": (None,),
    "guidance_scale": (None, 1),
    "watermarking_config": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "is_assistant": (None, False),
    "use_mtp": (None, False),
    "speculation_type": (None,),
    "stop_strings": (None,),
    "token_healing": (None, False),
    "cache_implementation": (None, "dynamic"),
    "prefill_chunk_size": (None,),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
}

# What HF reads only together with one of the above, or for other kinds of models.
WITHOUT_EFFECT = frozenset(
    (
        "early_stopping",
        "length_penalty",
        "diversity_penalty",
        "low_memory",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "assistant_ensemble_weight",
        "target_lookbehind",
        "max_matching_ngram_size",
        "max_cache_len",
        "cache_config",
        "compile_config",
        "disable_compile",
        "decoder_start_token_id",
    )
)


class TokenIds(Protocol):
    """The special ids of a model's configuration."""

    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_id(self) -> int | Sequence[int] | None: ...
    @property
    def pad_token_id(self) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """The settings of one `generate` call, or a model's defaults for them; `changed` gives a copy with other ones."""

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    max_time: float | None = None
    do_sample: bool | None = None
    use_cache: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    repetition_penalty: float | None = None
    encoder_repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    sequence_bias: Sequence[Sequence[Any]] | Mapping[tuple[int, ...], float] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    exponential_decay_length_penalty: Sequence[float] | None = None
    remove_invalid_values: bool | None = None
    renormalize_logits: bool | None = None
    num_return_sequences: int | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    return_dict_in_generate: bool | None = None
    bos_token_id: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # HF takes tensors as well
            if hasattr(value := getattr(self, name), "tolist"):
                object.__setattr__(self, name, value.tolist())
        for expected, fits, names in _KINDS:
            for name in names:
                value = getattr(self, name)
                if value is not None and not fits(value):
                    raise ConfigError(f"{name} must be {expected}, not {value!r}", param=name)

    @classmethod
    def from_pretrained(cls, name_or_directory: str | Path, **changes: Any) -> Self:
        """Read generation_config.json of a directory or hub repository, which must have one; `changes` are keys."""
        from glm_cluster.model.checkpoints.hub import resolve

        path = resolve(name_or_directory) / FILE_NAME
        if not path.is_file():
            raise CheckpointError(f"there is no {path}; make a GenerationConfig(...) of the settings you want")
        return cls._from_file(path).changed(changes)

    @classmethod
    def from_directory(cls, directory: Path, config: TokenIds) -> Self:
        """Read `directory/generation_config.json`; without one, take the special ids of the model's `config`."""
        path = Path(directory) / FILE_NAME
        if not path.is_file():
            return cls(
                bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
            )
        return cls._from_file(path)

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        try:
            return cls.from_dict(_read_object(path))
        except CheckpointError:
            raise
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error.message}", param=error.param) from error

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Sort HF's keys into fields and `extra`."""
        known = {name: value for name, value in raw.items() if name in FIELDS}
        return cls(**known, extra={name: value for name, value in raw.items() if name not in FIELDS})

    def to_dict(self) -> dict[str, Any]:
        """Everything that is set, `extra` included."""
        given = {name: getattr(self, name) for name in FIELDS}
        return {**self.extra, **{name: value for name, value in given.items() if value is not None}}

    def save(self, directory: Path) -> None:
        """Write `directory/generation_config.json` as HF does: what is set, sorted."""
        raw = self.to_dict()
        if isinstance(self.sequence_bias, Mapping):
            raw["sequence_bias"] = [[list(ids), bias] for ids, bias in self.sequence_bias.items()]
        Path(directory).mkdir(parents=True, exist_ok=True)
        text = json.dumps(raw, indent=2, sort_keys=True) + "\n"
        (Path(directory) / FILE_NAME).write_text(text, encoding="utf-8")

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a sequence, in a tuple however they were given; empty where nothing ends one."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    def filled(self, base: "GenerationConfig") -> Self:
        """Take from `base` what is unset here."""
        missing = {name: getattr(base, name) for name in FIELDS if getattr(self, name) is None}
        return replace(self, **missing, extra={**base.extra, **self.extra})

    def changed(self, overrides: Mapping[str, Any]) -> Self:
        """Replace keys, by None too: an override of None unsets what a model's file set."""
        known = {name: value for name, value in overrides.items() if name in FIELDS}
        others = {name: value for name, value in overrides.items() if name not in FIELDS}
        return replace(self, **known, extra={**self.extra, **others})

    def refuse_unimplemented(self) -> None:
        """Refuse a key that HF would act on and we would not; ignoring it would change the output in silence."""
        for name, neutral in UNIMPLEMENTED.items():
            value = self.extra.get(name)
            if not any(value is each or value == each for each in neutral):
                hint = f"set it to {neutral[-1]!r}" if neutral[-1] is not None else "remove it"
                raise ConfigError(f"{name}={value!r} is not implemented by this generate; {hint}", param=name)


FIELDS = frozenset(f.name for f in fields(GenerationConfig)) - {"extra"}


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _are_ids(value: object) -> bool:
    return isinstance(value, list | tuple) and all(_is_whole(each) for each in value)


def _are_id_or_ids(value: object) -> bool:
    return _is_whole(value) or (_are_ids(value) and value not in ([], ()))


def _are_words(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(_are_ids(each) and each for each in value)


def _are_biases(value: object) -> bool:
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list | tuple) or not pairs:
        return False
    return all(
        isinstance(pair, list | tuple) and len(pair) == 2 and pair[0] and _are_ids(pair[0]) and _is_number(pair[1])
        for pair in pairs
    )


def _is_decay(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and _is_whole(value[0]) and _is_number(value[1])


_KINDS: tuple[tuple[str, Callable[[object], bool], tuple[str, ...]], ...] = (
    (
        "a whole number",
        _is_whole,
        (
            "max_length",
            "max_new_tokens",
            "min_length",
            "min_new_tokens",
            "top_k",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "num_return_sequences",
        ),
    ),
    (
        "a number",
        _is_number,
        (
            "max_time",
            "temperature",
            "top_p",
            "min_p",
            "top_h",
            "typical_p",
            "epsilon_cutoff",
            "eta_cutoff",
            "repetition_penalty",
            "encoder_repetition_penalty",
        ),
    ),
    (
        "true or false",
        _is_flag,
        (
            "do_sample",
            "use_cache",
            "remove_invalid_values",
            "renormalize_logits",
            "output_scores",
            "output_logits",
            "return_dict_in_generate",
        ),
    ),
    ("a token id", _is_whole, ("bos_token_id", "pad_token_id", "forced_bos_token_id")),
    ("a token id or a list of them", _are_id_or_ids, ("eos_token_id", "forced_eos_token_id")),
    ("a list of token ids", _are_ids, ("suppress_tokens", "begin_suppress_tokens")),
    ("a list of lists of token ids, none empty", _are_words, ("bad_words_ids",)),
    ("a list of pairs [token ids, bias], none empty", _are_biases, ("sequence_bias",)),
    ("a pair [first token, factor]", _is_decay, ("exponential_decay_length_penalty",)),
)

# HF fills these in last; the lengths are `generate`'s business.
DEFAULTS = GenerationConfig(
    do_sample=False,
    use_cache=True,
    temperature=1.0,
    top_k=50,
    top_p=1.0,
    typical_p=1.0,
    repetition_penalty=1.0,
    no_repeat_ngram_size=0,
    num_return_sequences=1,
)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return raw
