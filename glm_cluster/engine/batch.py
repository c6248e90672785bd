"""A step plan as tensors. Pads so that no row's result depends on how many others there are.

Shape legend: T tokens of the step and R rows to sample, pool or score, multiples of the `row_multiple` of whoever
computes; P the same tokens, a multiple of 8.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from glm_cluster.engine.past import Draw
from glm_cluster.engine.plan import Slice, StepPlan
from glm_cluster.model.attention import ROW_MULTIPLE, Ragged
from glm_cluster.records import Pooling


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one forward pass."""

    ids_T: Tensor
    positions_P: Tensor  # padded further: torch's cosine has other bits where less than a register is left
    ragged: Ragged
    rows_R: Tensor  # which rows to sample or to pool, then which to score; both padded with row 0
    sampled: tuple[str, ...]  # of each row to sample the key of its slice, whose rows follow one another
    guesses: tuple[int | None, ...]  # what is to come out of each row if the next one is to count; None in the last
    draws: tuple[Draw, ...]  # of each row to sample; empty on ranks that do not
    sample_positions: tuple[int, ...]  # position of the token about to be sampled
    pooled: tuple[tuple[str, Pooling, int], ...]  # slices to pool, and how many of the rows that follow are theirs
    scored: tuple[Slice, ...]  # whose first rows are those to score
    num_scored_rows: int  # with padding

    @classmethod
    def build(cls, plan: StepPlan, *, block_tokens: int, device: torch.device, row_multiple: int) -> "Batch":
        """Lay the slices one after another."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        first_row: dict[str, int] = {}
        for part in plan.slices:
            first_row[part.key] = len(ids)
            ids += part.tokens
            span = range(part.start, part.start + len(part.tokens))
            positions += span
            slots += (part.blocks[p // block_tokens] * block_tokens + p % block_tokens for p in span)
        padding = [0] * (-len(ids) % row_multiple)
        sampled = [(s, s.num_drafts + 1) for s in plan.slices if s.samples]
        pooled = [(s, s.pooling, _num_rows(s)) for s in plan.slices if s.pooling is not None]
        scored = tuple(s for s in plan.slices if s.num_scored)
        counts = [*sampled, *((s, count) for s, _, count in pooled)]
        rows = [first_row[s.key] + i for s, count in counts for i in range(len(s.tokens) - count, len(s.tokens))]
        rows += [0] * (-len(rows) % row_multiple)
        scored_rows = [first_row[s.key] + i for s in scored for i in range(s.num_scored)]
        scored_rows += [0] * (-len(scored_rows) % row_multiple)
        return cls(
            ids_T=torch.tensor(ids + padding, device=device),
            positions_P=torch.tensor(positions + [0] * (-len(ids) % ROW_MULTIPLE), device=device),
            ragged=Ragged(
                slots=slots + padding,
                first_rows=tuple(first_row.values()),
                num_tokens=tuple(len(s.tokens) for s in plan.slices),
                starts=tuple(s.start for s in plan.slices),
                tables=tuple(s.blocks for s in plan.slices),
            ),
            rows_R=torch.tensor(rows + scored_rows, dtype=torch.int64, device=device),
            sampled=tuple(s.key for s, count in sampled for _ in range(count)),
            guesses=tuple(guess for s, _ in sampled for guess in (*s.drafts, None)),
            draws=tuple(Draw(s.past, s.drafts[:i]) for s, n in sampled if s.past is not None for i in range(n)),
            sample_positions=tuple(s.start + s.num_known + i for s, count in sampled for i in range(count)),
            pooled=tuple((s.key, pooling, count) for s, pooling, count in pooled),
            scored=scored,
            num_scored_rows=len(scored_rows),
        )


def _num_rows(part: Slice) -> int:
    """Rows of a slice that are pooled: the last, which is the prompt's, or all."""
    return 1 if part.pooling == "last" else len(part.tokens)
