"""What a step answers with: tokens, label logits, or hidden states. The one place that tells tasks apart.

Shape legend: R rows (a multiple of the backend's `row_multiple`), H hidden width, W labels or H, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Protocol, TypeAlias

from torch import Tensor

from glm_cluster.engine.batch import Batch
from glm_cluster.engine.edits import edit
from glm_cluster.engine.logprobs import score
from glm_cluster.engine.plan import Pooled, Slice, StepOutput
from glm_cluster.engine.pooling import pool
from glm_cluster.engine.sampler import sample
from glm_cluster.model.glm import GlmForCausalLM, GlmModel
from glm_cluster.model.heads import GlmForSequenceClassification, GlmForTokenClassification
from glm_cluster.records import TokenLogprobs

ServedModel: TypeAlias = GlmForCausalLM | GlmForSequenceClassification | GlmForTokenClassification | GlmModel
IdRanges: TypeAlias = tuple[tuple[int, int], ...]
"""Half-open ranges of token ids."""
Drawn: TypeAlias = dict[str, list[tuple[int, int]]]
"""Row and token of each draw, by slice."""

SCORED_ROWS = 64  # of logits at a time, 40 MB of them with GLM-4's vocabulary; a multiple of every row multiple


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
        num_rows = len(x_RH) - batch.num_scored_rows
        scores = self._scores(x_RH[num_rows:], batch)
        if not batch.sampled:
            return StepOutput(scores=scores)
        logits_RV = self._model.sampled_logits(x_RH[:num_rows])  # the ranks meet here
        if logits_RV is None:
            return StepOutput()
        logits_RV = logits_RV[: len(batch.sampled)]
        asks = any(draw.sampling.logprobs is not None for draw in batch.draws)
        own_RV = logits_RV.clone() if asks else logits_RV
        for start, stop in self._unused:
            logits_RV[:, start:stop] = float("-inf")
        drawn = _sample(logits_RV, batch)
        tokens = {key: tuple(token for _, token in some) for key, some in drawn.items()}
        return StepOutput(tokens, logprobs=self._logprobs(own_RV, drawn, batch) if asks else {}, scores=scores)

    def _logprobs(self, logits_RV: Tensor, drawn: Drawn, batch: Batch) -> dict[str, tuple[TokenLogprobs, ...]]:
        """Of the drawn tokens whose requests ask, from the model's own logits."""
        asked = [
            (key, row, token, top)
            for key, some in drawn.items()
            for row, token in some
            if (top := batch.draws[row].sampling.logprobs) is not None
        ]
        keys, rows, tokens, tops = zip(*asked, strict=True)
        judged: dict[str, tuple[TokenLogprobs, ...]] = dict.fromkeys(keys, ())
        for key, one in zip(keys, score(logits_RV[list(rows)], tokens, tops, self._unused), strict=True):
            judged[key] += (one,)
        return judged

    def _scores(self, x_SH: Tensor, batch: Batch) -> dict[str, tuple[TokenLogprobs, ...]]:
        """Of the prompt tokens after the rows to score, a few rows at a time: each has a whole vocabulary of logits."""
        wanted = [(part.key, *one) for part in batch.scored for one in _prompt_tokens(part)]
        scores: defaultdict[str, list[TokenLogprobs]] = defaultdict(list)
        for start in range(0, len(x_SH), SCORED_ROWS):
            logits_SV = self._model.sampled_logits(x_SH[start : start + SCORED_ROWS])  # the ranks meet here
            if logits_SV is None:
                continue
            keys, tokens, tops = zip(*wanted[start : start + SCORED_ROWS], strict=True)
            for key, one in zip(keys, score(logits_SV[: len(keys)], tokens, tops, self._unused), strict=True):
                scores[key].append(one)
        return {key: tuple(some) for key, some in scores.items()}


def _prompt_tokens(part: Slice) -> list[tuple[int, int]]:
    """Each token to judge, and how many of the likeliest to name beside it; none on ranks that do not sample."""
    if part.past is None:
        return []
    tokens = part.past.tokens[part.start + 1 : part.start + 1 + part.num_scored]
    return [(token, part.past.sampling.prompt_logprobs or 0) for token in tokens]


def _sample(logits_RV: Tensor, batch: Batch) -> Drawn:
    """The tokens of each slice, and their rows: as many as were guessed right, and one more.

    A row is drawn from once every guess before it has come true, so that its past is the sequence's own, and nothing is
    spent on others: a draw sorts the vocabulary.
    """
    drawn: Drawn = {key: [] for key in batch.sampled}
    rows = [row for row in range(len(batch.sampled)) if row == 0 or batch.guesses[row - 1] is None]
    while rows:
        draws = [batch.draws[row] for row in rows]
        tokens = sample(
            edit(logits_RV if len(rows) == len(logits_RV) else logits_RV[rows], draws),
            [draw.sampling for draw in draws],
            [batch.sample_positions[row] for row in rows],
        )
        for row, token in zip(rows, tokens, strict=True):
            drawn[batch.sampled[row]].append((row, token))
        rows = [row + 1 for row, token in zip(rows, tokens, strict=True) if _goes_on(batch, row, token)]
    return drawn


def _goes_on(batch: Batch, row: int, token: int) -> bool:
    """Whether the next row is the sequence's too: nothing comes after a stop token, guessed or not."""
    return token == batch.guesses[row] and token not in batch.draws[row].sampling.stop_token_ids


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
