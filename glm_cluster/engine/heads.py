"""What a step answers with: sampled tokens, label logits, or hidden states. The one place that tells tasks apart.

Shape legend: R rows (a multiple of the backend's `row_multiple`), H hidden width, W labels or H, V vocabulary.
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias

from torch import Tensor

from glm_cluster.engine.batch import Batch
from glm_cluster.engine.plan import Pooled, StepOutput
from glm_cluster.engine.pooling import pool
from glm_cluster.engine.sampler import sample
from glm_cluster.model.glm import GlmForCausalLM, GlmModel
from glm_cluster.model.heads import GlmForSequenceClassification, GlmForTokenClassification

ServedModel: TypeAlias = GlmForCausalLM | GlmForSequenceClassification | GlmForTokenClassification | GlmModel
IdRanges: TypeAlias = tuple[tuple[int, int], ...]
"""Half-open ranges of token ids."""


class Head(Protocol):
    """Turns the hidden rows that a batch wants into its output. Called on every rank; only rank 0 answers.

    The rows are padded as the backend asks, so that a row's bits do not depend on how many others there are.
    """

    def __call__(self, x_RH: Tensor, batch: Batch) -> StepOutput: ...


def head_of(model: ServedModel, unused_token_ids: IdRanges) -> Head:
    """The head that goes with a model."""
    if isinstance(model, GlmForCausalLM):
        return TokenHead(model, unused_token_ids)
    if isinstance(model, GlmModel):
        return RowHead(model.ranks.rank, lambda x_RH: x_RH)
    return RowHead(model.ranks.rank, model.score)


class TokenHead:
    """Sampled tokens, never one of `unused`: ids that the model has a row for and the tokenizer no token."""

    def __init__(self, model: GlmForCausalLM, unused: IdRanges) -> None:
        self._model = model
        self._unused = unused

    def __call__(self, x_RH: Tensor, batch: Batch) -> StepOutput:
        if not batch.sampled:
            return StepOutput()
        logits_RV = self._model.sampled_logits(x_RH)  # the ranks meet here
        if logits_RV is None:
            return StepOutput()
        for start, stop in self._unused:
            logits_RV[:, start:stop] = float("-inf")
        return StepOutput(_sample(logits_RV[: len(batch.sampled)], batch))


def _sample(logits_RV: Tensor, batch: Batch) -> dict[str, tuple[int, ...]]:
    """The tokens of each slice: as many as were guessed right, and one more.

    A row is drawn from once every guess before it has come true, so that its past is the sequence's own, and nothing is
    spent on others: a draw sorts the vocabulary.
    """
    tokens: dict[str, tuple[int, ...]] = dict.fromkeys(batch.sampled, ())
    rows = [row for row in range(len(batch.sampled)) if row == 0 or batch.guesses[row - 1] is None]
    while rows:
        drawn = sample(
            logits_RV if len(rows) == len(logits_RV) else logits_RV[rows],
            [batch.sampling[row] for row in rows],
            [batch.sample_positions[row] for row in rows],
        )
        for row, token in zip(rows, drawn, strict=True):
            tokens[batch.sampled[row]] += (token,)
        rows = [row + 1 for row, token in zip(rows, drawn, strict=True) if token == batch.guesses[row]]
    return tokens


class RowHead:
    """The pooled numbers of each slice, computed in the model's dtype, as HF's, and handed out in fp32."""

    def __init__(self, rank: int, numbers: Callable[[Tensor], Tensor]) -> None:
        self._rank = rank
        self._numbers = numbers

    def __call__(self, x_RH: Tensor, batch: Batch) -> StepOutput:
        if self._rank > 0 or not batch.pooled:
            return StepOutput()
        numbers_RW = self._numbers(x_RH).float()
        rows: dict[str, Pooled] = {}
        start = 0
        for key, pooling, count in batch.pooled:
            rows[key] = pool(numbers_RW[start : start + count], pooling)
            start += count
        return StepOutput(rows=rows)
