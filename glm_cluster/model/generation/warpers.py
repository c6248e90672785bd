"""The filters of sampling, one object each, bit-equal to Hugging Face's logits warpers. Know no model and no settings.

Each takes the ids so far and the next token's scores and returns new scores; -inf removes a token. Their order is
`processors.py`'s. Shape legend: B rows, T tokens so far, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical

_REMOVED = -float("inf")
_TOP_H_CANDIDATES = 100  # HF's cap on the tokens whose entropy is summed


@dataclass(frozen=True, slots=True)
class Temperature:
    """Divide the scores: above 1 flattens the distribution, below 1 sharpens it."""

    temperature: float

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be above 0, not {self.temperature}; for the most likely tokens set do_sample=False"
            )

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        return scores_BV / self.temperature


@dataclass(frozen=True, slots=True)
class TopK:
    """Keep the k most likely tokens, and all that tie with the last of them."""

    top_k: int

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k must be 1 or more, not {self.top_k}; 0 turns it off")

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        best_BK = scores_BV.topk(min(self.top_k, scores_BV.shape[-1])).values
        return scores_BV.masked_fill(scores_BV < best_BK[:, -1:], _REMOVED)


@dataclass(frozen=True, slots=True)
class TopP:
    """Keep the smallest set of most likely tokens whose probabilities reach top_p."""

    top_p: float

    def __post_init__(self) -> None:
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p must be between 0 and 1, not {self.top_p}")

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        rising_BV, order_BV = scores_BV.sort(descending=False)
        tail_BV = rising_BV.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
        tail_BV[:, -1] = False
        return _remove(scores_BV, order_BV, tail_BV)


@dataclass(frozen=True, slots=True)
class MinP:
    """Remove the tokens less likely than min_p times the most likely one."""

    min_p: float

    def __post_init__(self) -> None:
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be between 0 and 1, not {self.min_p}")

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        probs_BV = scores_BV.softmax(dim=-1)
        best_B1 = probs_BV.amax(dim=-1, keepdim=True)
        return scores_BV.masked_fill(probs_BV < self.min_p * best_B1, _REMOVED)


@dataclass(frozen=True, slots=True)
class TopH:
    """Keep the most likely tokens while their share of the entropy stays within top_h."""

    top_h: float

    def __post_init__(self) -> None:
        if not 0 < self.top_h <= 1:
            raise ValueError(f"top_h must be above 0 and at most 1, not {self.top_h}")

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        best_BK, where_BK = scores_BV.topk(min(_TOP_H_CANDIDATES, scores_BV.shape[-1]))
        candidates = Categorical(logits=best_BK)
        budget_B1 = (candidates.entropy() * self.top_h).unsqueeze(-1)
        spent_BK = (-candidates.probs * candidates.probs.log()).cumsum(dim=-1)
        kept_BK = spent_BK <= budget_B1
        kept_BK[:, 0] = True
        kept_BV = torch.zeros_like(scores_BV, dtype=torch.bool).scatter(1, where_BK, kept_BK)
        return scores_BV.masked_fill(~kept_BV, _REMOVED)


@dataclass(frozen=True, slots=True)
class TypicalP:
    """Keep the tokens whose surprise is nearest the expected one, up to a mass of typical_p."""

    typical_p: float

    def __post_init__(self) -> None:
        if not 0 < self.typical_p < 1:
            raise ValueError(f"typical_p must be above 0 and below 1, not {self.typical_p}; 1 turns it off")

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        log_probs_BV = scores_BV.log_softmax(dim=-1)
        entropy_B1 = -(log_probs_BV * log_probs_BV.exp()).nansum(dim=-1, keepdim=True)
        distance_BV, order_BV = (-log_probs_BV - entropy_B1).abs().sort(descending=False)
        mass_BV = scores_BV.gather(-1, order_BV).softmax(dim=-1).cumsum(dim=-1)
        last_B1 = (mass_BV < self.typical_p).sum(dim=-1, keepdim=True).clamp(max=scores_BV.shape[-1] - 1)
        atypical_BV = distance_BV > distance_BV.gather(1, last_B1)
        atypical_BV[:, 0] = False
        return _remove(scores_BV, order_BV, atypical_BV)


@dataclass(frozen=True, slots=True)
class EpsilonCutoff:
    """Remove the tokens less likely than epsilon."""

    epsilon: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon_cutoff must be above 0 and below 1, not {self.epsilon}")

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        return _remove_unlikely(scores_BV, scores_BV.softmax(dim=-1) < self.epsilon)


@dataclass(frozen=True, slots=True)
class EtaCutoff:
    """Remove the tokens less likely than epsilon, or than its root scaled down by the entropy where that is less."""

    epsilon: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise ValueError(f"eta_cutoff must be above 0 and below 1, not {self.epsilon}")

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        epsilon = torch.tensor(self.epsilon, device=scores_BV.device)
        entropy_B = Categorical(logits=scores_BV).entropy()
        eta_B = torch.minimum(epsilon, epsilon.sqrt() * (-entropy_B).exp())
        return _remove_unlikely(scores_BV, scores_BV.softmax(dim=-1) < eta_B.unsqueeze(-1))


@dataclass(frozen=True, slots=True)
class Normalize:
    """Turn the scores into log-probabilities."""

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        return scores_BV.log_softmax(dim=-1)


def _remove(scores_BV: Tensor, order_BV: Tensor, removed_BV: Tensor) -> Tensor:
    """Remove what a mask over the sorted scores names."""
    return scores_BV.masked_fill(torch.empty_like(removed_BV).scatter(1, order_BV, removed_BV), _REMOVED)


def _remove_unlikely(scores_BV: Tensor, unlikely_BV: Tensor) -> Tensor:
    """Remove the marked tokens, but never a row's best."""
    best_B1 = scores_BV.amax(dim=-1, keepdim=True)
    return scores_BV.masked_fill(unlikely_BV & (scores_BV < best_B1), _REMOVED)
