"""When a sequence ends: one object per reason, each (ids so far, scores so far or None) -> one flag a row.

The shape is Hugging Face's stopping criteria, so theirs serve here as well. Knows ids; knows no model and no text.
Shape legend: B rows, T tokens so far.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glm_cluster.model.generation.config import GenerationConfig
from glm_cluster.model.generation.processors import merged

StoppingCriterion = Callable[[Tensor, tuple[Tensor, ...] | None], Tensor]


@dataclass(frozen=True, slots=True)
class MaxLength:
    """Every row ends at `length` tokens, prompt included."""

    length: int

    def __call__(self, ids_BT: Tensor, scores: tuple[Tensor, ...] | None) -> Tensor:
        return _same(ids_BT, ids_BT.shape[1] >= self.length)


@dataclass(frozen=True, slots=True)
class MaxTime:
    """Every row ends at the first token after `seconds`, counted from this object's making."""

    seconds: float
    start: float = field(default_factory=time.monotonic)

    def __call__(self, ids_BT: Tensor, scores: tuple[Tensor, ...] | None) -> Tensor:
        return _same(ids_BT, time.monotonic() - self.start > self.seconds)


@dataclass(frozen=True, slots=True)
class EosToken:
    """A row ends with any of these ids."""

    eos_token_id: tuple[int, ...]

    def __call__(self, ids_BT: Tensor, scores: tuple[Tensor, ...] | None) -> Tensor:
        return torch.isin(ids_BT[:, -1], torch.tensor(self.eos_token_id, device=ids_BT.device))


def criteria_for(
    config: GenerationConfig, max_length: int, custom: Sequence[StoppingCriterion] = ()
) -> list[StoppingCriterion]:
    """The reasons a configuration gives, and the caller's own."""
    reasons: list[StoppingCriterion] = [MaxLength(max_length)]
    if config.max_time is not None:
        reasons.append(MaxTime(config.max_time))
    if config.eos_token_ids:
        reasons.append(EosToken(config.eos_token_ids))
    return merged(reasons, custom)


def ended(criteria: Sequence[StoppingCriterion], ids_BT: Tensor, scores: tuple[Tensor, ...] | None) -> Tensor:
    """Whether any of the reasons holds, for each row."""
    ended_B = _same(ids_BT, False)
    for criterion in criteria:
        ended_B = ended_B | criterion(ids_BT, scores)
    return ended_B


def fills(criteria: Sequence[StoppingCriterion]) -> bool:
    """Whether ended rows get padding: HF's rule, that some reason carries end-of-sequence ids."""
    return any(hasattr(criterion, "eos_token_id") for criterion in criteria)


def _same(ids_BT: Tensor, flag: bool) -> Tensor:
    return torch.full((ids_BT.shape[0],), flag, dtype=torch.bool, device=ids_BT.device)
