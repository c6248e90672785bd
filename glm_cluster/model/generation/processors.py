"""What rewrites the next token's scores before a token is chosen, bit-equal to Hugging Face's logits processors.

One small object each, and `processors_for`, which says which of them a configuration asks for and in what order. Knows
token ids; knows no model and no text. Shape legend: B rows, T tokens so far, V vocabulary, N ids of any kind.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glm_cluster.model.generation import warpers
from glm_cluster.model.generation.config import GenerationConfig

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
AllowedTokens = Callable[[int, Tensor], Sequence[int]]

_REMOVED = -float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the processors need to know of a call: prompt, mask (None: no padding) and the total lengths asked for."""

    ids_BT: Tensor
    mask_BT: Tensor | None = None
    min_length: int = 0
    max_length: int


def processors_for(
    config: GenerationConfig,
    prompt: Prompt,
    *,
    custom: Sequence[LogitsProcessor] = (),
    allowed_tokens: AllowedTokens | None = None,
) -> list[LogitsProcessor]:
    """The processors of a configuration in HF's order; the caller's own stand between the rules and the warpers."""
    rules = [
        *_biases(config, prompt),
        *_lengths(config, prompt),
        *([AllowedOnly(allowed_tokens)] if allowed_tokens is not None else []),
        *_forced(config, prompt),
        *_suppressed(config, prompt),
    ]
    normalize = [warpers.Normalize()] if config.renormalize_logits else []
    return [*merged(rules, custom), *_warpers(config), *normalize]


def merged(defaults: Sequence[Any], custom: Sequence[Any]) -> list[Any]:
    """The defaults, then the caller's own; one of the same type as a default stands in its place instead."""
    out = [next((mine for mine in custom if type(mine) is type(default)), default) for default in defaults]
    return [*out, *(mine for mine in custom if not any(mine is each for each in out))]


def _biases(config: GenerationConfig, prompt: Prompt) -> Iterator[LogitsProcessor]:
    if config.sequence_bias is not None:
        yield SequenceBias(config.sequence_bias)
    if (penalty := config.encoder_repetition_penalty) is not None and penalty != 1.0:
        yield PromptBonus(penalty, prompt.ids_BT)
    if (penalty := config.repetition_penalty) is not None and penalty != 1.0:
        yield RepetitionPenalty(penalty, _first_real(prompt.mask_BT))
    if size := config.no_repeat_ngram_size:
        yield NoRepeatNgram(size)
    if size := config.encoder_no_repeat_ngram_size:
        yield NoPromptNgram(size, prompt.ids_BT)
    if config.bad_words_ids is not None:
        yield bad_words(config.bad_words_ids, config.eos_token_ids)


def _lengths(config: GenerationConfig, prompt: Prompt) -> Iterator[LogitsProcessor]:
    if prompt.min_length > 0 and config.eos_token_ids:
        yield MinLength(prompt.min_length, config.eos_token_ids)


def _forced(config: GenerationConfig, prompt: Prompt) -> Iterator[LogitsProcessor]:
    if config.forced_bos_token_id is not None:
        yield ForcedAt(1, (config.forced_bos_token_id,))
    if (eos := config.forced_eos_token_id) is not None:
        yield ForcedAt(prompt.max_length - 1, (eos,) if isinstance(eos, int) else tuple(eos))
    if config.remove_invalid_values:
        yield Finite()
    if (decay := config.exponential_decay_length_penalty) is not None:
        if not config.eos_token_ids:
            raise ValueError("exponential_decay_length_penalty raises the end-of-sequence ids; set eos_token_id")
        yield GrowingEos(int(decay[0]) + prompt.ids_BT.shape[1], decay[1], config.eos_token_ids)


def _suppressed(config: GenerationConfig, prompt: Prompt) -> Iterator[LogitsProcessor]:
    if config.suppress_tokens is not None:
        yield Suppress(tuple(config.suppress_tokens))
    if config.begin_suppress_tokens is not None:
        length = prompt.ids_BT.shape[1]
        forced_first = length <= 1 and config.forced_bos_token_id is not None
        yield Suppress(tuple(config.begin_suppress_tokens), at=length + 1 if forced_first else length)


def _warpers(config: GenerationConfig) -> Iterator[LogitsProcessor]:
    if not config.do_sample:
        return
    if config.temperature is not None and config.temperature != 1.0:
        yield warpers.Temperature(config.temperature)
    if config.top_h is not None:
        yield warpers.TopH(config.top_h)
    if config.top_k:
        yield warpers.TopK(config.top_k)
    if config.top_p is not None and config.top_p < 1.0:
        yield warpers.TopP(config.top_p)
    if config.min_p is not None:
        yield warpers.MinP(config.min_p)
    if config.typical_p is not None and config.typical_p < 1.0:
        yield warpers.TypicalP(config.typical_p)
    yield from _cutoffs(config)


def _cutoffs(config: GenerationConfig) -> Iterator[LogitsProcessor]:
    if config.epsilon_cutoff is not None and 0 < config.epsilon_cutoff < 1:
        yield warpers.EpsilonCutoff(config.epsilon_cutoff)
    if config.eta_cutoff is not None and 0 < config.eta_cutoff < 1:
        yield warpers.EtaCutoff(config.eta_cutoff)


class SequenceBias:
    """Add a bias to the token that would complete a sequence of ids; -inf forbids the sequence."""

    def __init__(self, biases: Sequence[Sequence[Any]] | Mapping[tuple[int, ...], float]) -> None:
        pairs = biases.items() if isinstance(biases, Mapping) else ((ids, bias) for ids, bias in biases)
        unique = {tuple(ids): float(bias) for ids, bias in pairs}
        if any(token < 0 for ids in unique for token in ids):
            raise ValueError(f"biased or forbidden ids must be 0 or more, not {list(unique)}")
        self._largest = max((token for ids in unique for token in ids), default=-1)
        by_length: dict[int, list[tuple[tuple[int, ...], float]]] = {1: []}  # the singles are added first
        for ids, bias in unique.items():
            by_length.setdefault(len(ids), []).append((ids, bias))
        self._groups = [_columns(group) for group in by_length.values() if group]

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        if self._largest >= scores_BV.shape[-1]:
            raise ValueError(f"id {self._largest} is biased or forbidden, but the vocabulary has {scores_BV.shape[-1]}")
        bias_BV = torch.zeros_like(scores_BV)
        for prefixes_NP, last_N, bias_N in self._groups:
            length = prefixes_NP.shape[1]
            if length > ids_BT.shape[1]:
                continue
            tail_B1P = ids_BT[:, None, ids_BT.shape[1] - length :]
            completes_BN = (tail_B1P == prefixes_NP.to(ids_BT.device)).all(dim=-1)
            added_BN = torch.where(completes_BN, bias_N.to(scores_BV), 0.0)
            bias_BV.index_add_(1, last_N.to(scores_BV.device), added_BN)
        return scores_BV + bias_BV


def _columns(group: list[tuple[tuple[int, ...], float]]) -> tuple[Tensor, Tensor, Tensor]:
    """Prefixes [N, P], last ids [N] and biases [N] of the sequences of one length."""
    ids_NL = torch.tensor([ids for ids, _ in group])
    return ids_NL[:, :-1], ids_NL[:, -1], torch.tensor([bias for _, bias in group])


def bad_words(words: Sequence[Sequence[int]], eos_token_ids: Sequence[int]) -> SequenceBias:
    """Forbid sequences of ids, save a lone end-of-sequence id."""
    ends = [(eos,) for eos in eos_token_ids]
    return SequenceBias({tuple(word): _REMOVED for word in words if tuple(word) not in ends})


@dataclass(frozen=True, slots=True)
class RepetitionPenalty:
    """Make ids that already stand in the row less likely; `starts_B` is where each row's padding ends."""

    penalty: float
    starts_B: Tensor | None = None

    def __post_init__(self) -> None:
        _check_penalty("repetition_penalty", self.penalty)

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        counted_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        if self.starts_B is not None:
            positions_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
            counted_BT = positions_T >= self.starts_B.to(ids_BT.device)[:, None]
        return _penalized(scores_BV, _marked(ids_BT, counted_BT, scores_BV), self.penalty)


@dataclass(frozen=True, slots=True)
class PromptBonus:
    """Make the prompt's own ids more likely: HF's `encoder_repetition_penalty`, padding ids included."""

    penalty: float
    prompt_BT: Tensor

    def __post_init__(self) -> None:
        _check_penalty("encoder_repetition_penalty", self.penalty)

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        seen_BV = _marked(self.prompt_BT, torch.ones_like(self.prompt_BT, dtype=torch.bool), scores_BV)
        return _penalized(scores_BV, seen_BV, 1 / self.penalty)


@dataclass(frozen=True, slots=True)
class NoRepeatNgram:
    """Forbid the ids that would complete an n-gram for the second time."""

    size: int

    def __post_init__(self) -> None:
        _check_size("no_repeat_ngram_size", self.size)

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        return _without_ngrams(self.size, ids_BT, ids_BT, scores_BV)


@dataclass(frozen=True, slots=True)
class NoPromptNgram:
    """Forbid the ids that would complete an n-gram of the prompt: HF's `encoder_no_repeat_ngram_size`."""

    size: int
    prompt_BT: Tensor

    def __post_init__(self) -> None:
        _check_size("encoder_no_repeat_ngram_size", self.size)

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        return _without_ngrams(self.size, self.prompt_BT, ids_BT, scores_BV)


@dataclass(frozen=True, slots=True)
class MinLength:
    """Forbid the end until the row, prompt included, has `length` tokens."""

    length: int
    eos_token_ids: tuple[int, ...]

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        return _without(scores_BV, self.eos_token_ids) if ids_BT.shape[1] < self.length else scores_BV


@dataclass(frozen=True, slots=True)
class AllowedOnly:
    """Allow only the ids that the caller's function names for (row number, the row's ids)."""

    allowed_tokens: AllowedTokens

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        mask_BV = torch.full_like(scores_BV, _REMOVED)
        for row, ids_T in enumerate(ids_BT):
            allowed = self.allowed_tokens(row, ids_T)
            if len(allowed) == 0:
                raise ValueError(f"prefix_allowed_tokens_fn allows no token for row {row}; it must allow one or more")
            mask_BV[row, torch.as_tensor(allowed, device=mask_BV.device)] = 0
        kept_BV = scores_BV + mask_BV
        # Where another rule removed all that is allowed, the allowed win.
        return torch.where(kept_BV.amax(dim=-1, keepdim=True).isneginf(), mask_BV, kept_BV)


@dataclass(frozen=True, slots=True)
class ForcedAt:
    """Force one of `token_ids` when the row has `length` tokens."""

    length: int
    token_ids: tuple[int, ...]

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        if ids_BT.shape[1] != self.length:
            return scores_BV
        forced_BV = torch.full_like(scores_BV, _REMOVED)
        forced_BV[:, list(self.token_ids)] = 0
        return forced_BV


@dataclass(frozen=True, slots=True)
class Finite:
    """Replace NaN by 0 and the infinities by the largest finite numbers."""

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        return scores_BV.nan_to_num(nan=0.0)


@dataclass(frozen=True, slots=True)
class GrowingEos:
    """Raise the end's scores by a factor that grows with every token past `start`."""

    start: int
    factor: float
    eos_token_ids: tuple[int, ...]

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        past = ids_BT.shape[1] - self.start
        if past <= 0:
            return scores_BV
        ends = list(self.eos_token_ids)
        raised_BN = scores_BV[:, ends].abs() * (self.factor**past - 1)
        added_BV = torch.zeros_like(scores_BV)
        added_BV[:, ends] = raised_BN.masked_fill(~scores_BV[:, ends].isfinite(), 0.0)
        return scores_BV + added_BV


@dataclass(frozen=True, slots=True)
class Suppress:
    """Forbid ids: always, or only when the row has `at` tokens."""

    token_ids: tuple[int, ...]
    at: int | None = None

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        return _without(scores_BV, self.token_ids) if self.at in (None, ids_BT.shape[1]) else scores_BV


def _first_real(mask_BT: Tensor | None) -> Tensor | None:
    return None if mask_BT is None else (mask_BT != 0).int().argmax(dim=1)


def _without(scores_BV: Tensor, token_ids: Sequence[int]) -> Tensor:
    vocabulary_V = torch.arange(scores_BV.shape[-1], device=scores_BV.device)
    removed_V = torch.isin(vocabulary_V, torch.tensor(token_ids, dtype=torch.long, device=scores_BV.device))
    return scores_BV.masked_fill(removed_V, _REMOVED)


def _marked(ids_BN: Tensor, counted_BN: Tensor, scores_BV: Tensor) -> Tensor:
    """Which of the vocabulary stand in `ids_BN` where `counted_BN`; ids beyond it fall into a spare column."""
    vocab_size = scores_BV.shape[-1]
    marks = torch.zeros(scores_BV.shape[0], vocab_size + 1, dtype=torch.bool, device=scores_BV.device)
    columns_BN = torch.where(counted_BN, ids_BN.clamp(max=vocab_size), vocab_size)
    return marks.scatter_(1, columns_BN, True)[:, :vocab_size]


def _penalized(scores_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Divide the positive scores of what was seen and multiply the negative ones, so that both fall."""
    lowered_BV = torch.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
    return torch.where(seen_BV, lowered_BV, scores_BV)


def _without_ngrams(size: int, source_BT: Tensor, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
    """Forbid what would continue the last size-1 ids as some n-gram of `source_BT` does."""
    if min(source_BT.shape[1], ids_BT.shape[1] + 1) < size:
        return scores_BV
    ngrams_BNS = source_BT.unfold(1, size, 1)
    tail_B1P = ids_BT[:, None, ids_BT.shape[1] + 1 - size :]
    repeats_BN = (ngrams_BNS[..., :-1] == tail_B1P).all(dim=-1)
    return scores_BV.masked_fill(_marked(ngrams_BNS[..., -1], repeats_BN, scores_BV), _REMOVED)


def _check_penalty(name: str, penalty: float) -> None:
    if penalty <= 0:
        raise ValueError(f"{name} must be above 0, not {penalty}; 1.0 turns it off")


def _check_size(name: str, size: int) -> None:
    if size < 1:
        raise ValueError(f"{name} must be 1 or more, not {size}; 0 turns it off")
