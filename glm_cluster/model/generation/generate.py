"""Continue prompts by the plain forward, with Hugging Face's `generate` semantics: greedy or sampled, batched, cached.

The same weights and the same `torch.manual_seed` give HF's own ids (transformers 5.23). Beam search and assisted
decoding are refused, not approximated. Knows a model only by its call; knows no text, no request and no ranks.
Shape legend: B rows, T tokens so far, S tokens seen by attention, H hidden size, V vocabulary.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from glm_cluster.errors import ConfigError
from glm_cluster.model.generation.config import (
    DEFAULTS,
    FIELDS,
    UNIMPLEMENTED,
    WITHOUT_EFFECT,
    GenerationConfig,
    TokenIds,
)
from glm_cluster.model.generation.processors import AllowedTokens, LogitsProcessor, Prompt, processors_for
from glm_cluster.model.generation.rows import Cache, Rows
from glm_cluster.model.generation.stopping import StoppingCriterion, criteria_for, ended, fills
from glm_cluster.model.outputs import ModelOutput

logger = logging.getLogger(__name__)

DEFAULT_NEW_TOKENS = 20
_UNIMPLEMENTED_ARGUMENTS = (
    "assistant_model",
    "assistant_tokenizer",
    "custom_generate",
    "negative_prompt_attention_mask",
    "negative_prompt_ids",
    "synced_gpus",
    "tokenizer",
)
_SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


class CausalLmOutput(Protocol):
    """What a forward pass returns."""

    @property
    def logits(self) -> Tensor: ...
    @property
    def past_key_values(self) -> Cache | None: ...


class ModelConfig(TokenIds, Protocol):
    """What generation asks of a model's configuration."""

    @property
    def max_position_embeddings(self) -> int: ...


class CausalLm(Protocol):
    """A model with HF's forward: ids, mask, positions and cache in; the last logits and the cache out."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def generation_config(self) -> GenerationConfig: ...
    @property
    def device(self) -> torch.device: ...
    def __call__(self, **inputs: Any) -> CausalLmOutput: ...


class Streamer(Protocol):
    """Receives the prompt, then one token a row each step, then the end."""

    def put(self, value: Tensor) -> None: ...
    def end(self) -> None: ...


class GivenSettings(Protocol):
    """A generation config, ours or Transformers'."""

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(slots=True, kw_only=True)
class GenerateOutput(ModelOutput):
    """What `generate` returns with `return_dict_in_generate`; scores and logits hold one [B, V] tensor a step."""

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    past_key_values: Cache | None = None


@torch.no_grad()
def generate(
    model: CausalLm,
    inputs: Tensor | None = None,
    generation_config: GivenSettings | None = None,
    logits_processor: Sequence[LogitsProcessor] | None = None,
    stopping_criteria: Sequence[StoppingCriterion] | None = None,
    *,
    prefix_allowed_tokens_fn: AllowedTokens | None = None,
    input_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Cache | None = None,
    streamer: Streamer | None = None,
    **overrides: Any,
) -> Tensor | GenerateOutput:
    """Continue each row of the prompt; returns prompt and continuation, ended rows filled with the padding id.

    Settings come from `overrides`, else from `generation_config` (ours or Transformers'), else from the model's, else
    HF's defaults: greedy, 20 new tokens.
    """
    settings = _settings(model, generation_config, overrides)
    if inputs is not None and input_ids is not None:
        raise ValueError("inputs and input_ids are two names of one argument; give one of them")
    ids_BT = _prompt_ids(model, settings, inputs if inputs is not None else input_ids, inputs_embeds, attention_mask)
    rows = Rows.start(
        settings,
        ids_BT,
        inputs_embeds,
        mask_BS=attention_mask,
        positions_BS=position_ids,
        cache=past_key_values,
    )
    if streamer is not None:
        streamer.put(rows.ids_BT.cpu())
    prompt = _bounds(settings, rows, model.config.max_position_embeddings)
    processors = processors_for(
        settings, prompt, custom=logits_processor or (), allowed_tokens=prefix_allowed_tokens_fn
    )
    criteria = criteria_for(settings, prompt.max_length, stopping_criteria or ())
    output = _decode(model, settings, rows, processors=processors, criteria=criteria, streamer=streamer)
    return output if settings.return_dict_in_generate else output.sequences


def _settings(model: CausalLm, given: GivenSettings | None, overrides: Mapping[str, Any]) -> GenerationConfig:
    """Merge the four sources of settings, refuse what cannot be done, and say what will have no effect."""
    asked = {name: value for name, value in overrides.items() if name in FIELDS | UNIMPLEMENTED.keys()}
    _refuse_arguments({name: value for name, value in overrides.items() if name not in asked})
    chosen = _own(given)
    settings = chosen.filled(model.generation_config).filled(DEFAULTS).changed(asked)
    settings.refuse_unimplemented()
    _check_counts(settings)
    if not settings.do_sample:
        _warn_sampling_only({**chosen.to_dict(), **asked})
    if settings.pad_token_id is None and settings.eos_token_ids:
        settings = replace(settings, pad_token_id=settings.eos_token_ids[0])
    return settings


def _own(given: GivenSettings | None) -> GenerationConfig:
    if given is None or isinstance(given, GenerationConfig):
        return given or GenerationConfig()
    return GenerationConfig.from_dict({name: value for name, value in given.to_dict().items() if value is not None})


def _refuse_arguments(others: Mapping[str, Any]) -> None:
    given = [name for name, value in others.items() if value is not None and value is not False]
    if theirs := [name for name in given if name in _UNIMPLEMENTED_ARGUMENTS]:
        raise ConfigError(f"{', '.join(theirs)}: not implemented by this generate; leave it out", param=theirs[0])
    if unknown := [name for name in given if name not in WITHOUT_EFFECT]:
        raise ValueError(f"generate takes no {unknown}; check the spelling, or leave it out")
    for name in given:
        logger.warning("%s has no effect on this kind of generation", name)


def _check_counts(settings: GenerationConfig) -> None:
    if settings.max_new_tokens is not None and settings.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be 1 or more, not {settings.max_new_tokens}")
    rows = settings.num_return_sequences
    if rows is not None and rows < 1:
        raise ValueError(f"num_return_sequences must be 1 or more, not {rows}")
    if rows is not None and rows > 1 and not settings.do_sample:
        raise ValueError(f"num_return_sequences={rows} would repeat one greedy continuation; set do_sample=True")


def _warn_sampling_only(asked: Mapping[str, Any]) -> None:
    names = [n for n in _SAMPLING_ONLY if asked.get(n) not in (None, 0, getattr(DEFAULTS, n))]
    if names:
        logger.warning("%s: no effect without do_sample=True", ", ".join(names))


def _prompt_ids(
    model: CausalLm,
    settings: GenerationConfig,
    given_BT: Tensor | None,
    embeds_BTH: Tensor | None,
    mask_BS: Tensor | None,
) -> Tensor:
    """The prompt's ids; none beside embeddings, and without either the beginning-of-sequence id."""
    if given_BT is not None:
        if given_BT.ndim != 2:
            raise ValueError(f"input_ids must be [rows, tokens], not of shape {tuple(given_BT.shape)}")
        return given_BT
    if embeds_BTH is not None:
        return torch.ones(embeds_BTH.shape[0], 0, dtype=torch.long, device=embeds_BTH.device)
    if settings.bos_token_id is None:
        raise ValueError("without input_ids generation starts from bos_token_id, which is not set; give input_ids")
    return torch.full((1 if mask_BS is None else mask_BS.shape[0], 1), settings.bos_token_id, device=model.device)


def _bounds(settings: GenerationConfig, rows: Rows, max_positions: int) -> Prompt:
    """The total lengths the settings ask for. Embeddings without their ids count as prompt but not as output."""
    length = rows.ids_BT.shape[1]
    hidden = 0 if rows.embeds_BTH is None or rows.embeds_BTH.shape[1] == length else rows.embeds_BTH.shape[1]
    max_length = _max_length(settings, length, hidden, max_positions)
    min_length = max((settings.min_length or 0) - hidden, 0)
    if settings.min_new_tokens is not None:
        if settings.min_length is not None:
            logger.warning("min_new_tokens and min_length are both set; min_new_tokens decides")
        min_length = length + settings.min_new_tokens
    if length >= max_length:
        raise ValueError(
            f"the prompt has {length} tokens and max_length is {max_length}; raise max_length or set max_new_tokens"
        )
    if min_length > max_length:
        warnings.warn(
            f"the minimum length {min_length} is above the maximum {max_length}; generation stops at the maximum",
            stacklevel=4,
        )
    return Prompt(ids_BT=rows.ids_BT, mask_BT=rows.mask_BS, min_length=min_length, max_length=max_length)


def _max_length(settings: GenerationConfig, length: int, hidden: int, max_positions: int) -> int:
    if settings.max_new_tokens is not None:
        if settings.max_length is not None:
            logger.warning("max_new_tokens and max_length are both set; max_new_tokens decides")
        return length + settings.max_new_tokens
    if settings.max_length is not None:
        return settings.max_length - hidden
    max_length = min(length + DEFAULT_NEW_TOKENS, max_positions)
    warnings.warn(f"neither max_new_tokens nor max_length is set; stopping at {max_length} tokens", stacklevel=5)
    return max_length


def _decode(
    model: CausalLm,
    settings: GenerationConfig,
    rows: Rows,
    *,
    processors: Sequence[LogitsProcessor],
    criteria: Sequence[StoppingCriterion],
    streamer: Streamer | None,
) -> GenerateOutput:
    """Forward, choose, append, until every row has ended."""
    keeps_scores = settings.return_dict_in_generate and settings.output_scores
    keeps_logits = settings.return_dict_in_generate and settings.output_logits
    scores: tuple[Tensor, ...] | None = () if keeps_scores else None
    logits: tuple[Tensor, ...] | None = () if keeps_logits else None
    running_B = torch.ones(rows.ids_BT.shape[0], dtype=torch.bool, device=rows.ids_BT.device)
    while bool(running_B.any()):
        output = model(**rows.inputs(model.device))
        logits_BV = output.logits[:, -1].to(copy=True, dtype=torch.float32, device=rows.ids_BT.device)
        scores_BV = logits_BV
        for process in processors:
            scores_BV = process(rows.ids_BT, scores_BV)
        scores = None if scores is None else (*scores, scores_BV)
        logits = None if logits is None else (*logits, logits_BV)
        tokens_B = _choose(scores_BV, sample=bool(settings.do_sample))
        if settings.pad_token_id is not None and fills(criteria):
            tokens_B = tokens_B.where(running_B, settings.pad_token_id)
        rows.append(tokens_B, output.past_key_values)
        running_B &= ~ended(criteria, rows.ids_BT, scores)
        if streamer is not None:
            streamer.put(tokens_B.cpu())
    if streamer is not None:
        streamer.end()
    return GenerateOutput(sequences=rows.ids_BT, scores=scores, logits=logits, past_key_values=rows.cache)


def _choose(scores_BV: Tensor, *, sample: bool) -> Tensor:
    """The most likely token of each row, or one drawn from torch's global generator."""
    if not sample:
        return scores_BV.argmax(dim=-1)
    return torch.multinomial(scores_BV.softmax(dim=-1), num_samples=1).squeeze(1)
