"""A step plan as tensors. Pads so that no row's result depends on how many others there are.

Shape legend: T tokens of the step (a multiple of 8), R rows to sample or to pool (a multiple of 8).
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from glm_cluster.engine.plan import Slice, StepPlan
from glm_cluster.model.attention import ROW_MULTIPLE, TILE_SLOTS, QueryGroup
from glm_cluster.records import Pooling, SamplingParams

SCRATCH_BLOCK = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one forward pass."""

    ids_T: Tensor
    positions_T: Tensor
    slots_T: Tensor  # flat slot of each token; padding rows write to the scratch block
    groups: tuple[QueryGroup, ...]
    rows_R: Tensor  # which rows to sample or to pool; padded with row 0
    sampled: tuple[str, ...]  # of each row to sample the key of its slice, whose rows follow one another
    guesses: tuple[int | None, ...]  # what is to come out of each row if the next one is to count; None in the last
    sampling: tuple[SamplingParams, ...]
    sample_positions: tuple[int, ...]  # position of the token about to be sampled
    pooled: tuple[tuple[str, Pooling, int], ...]  # slices to pool, and how many of the rows that follow are theirs

    @classmethod
    def build(cls, plan: StepPlan, *, block_tokens: int, device: torch.device) -> "Batch":
        """Lay the slices one after another."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        groups: dict[tuple[int, int], list[tuple[int, Slice]]] = defaultdict(list)
        first_row: dict[str, int] = {}
        for part in plan.slices:
            end = part.start + len(part.tokens)
            groups[len(part.tokens), _bucket(end)].append((len(ids), part))
            first_row[part.key] = len(ids)
            ids += part.tokens
            positions += range(part.start, end)
            slots += (part.blocks[p // block_tokens] * block_tokens + p % block_tokens for p in range(part.start, end))
        padding = [0] * (-len(ids) % ROW_MULTIPLE)
        sampled = [(s, s.sampling, s.num_drafts + 1) for s in plan.slices if s.sampling is not None]
        pooled = [(s, s.pooling, _num_rows(s)) for s in plan.slices if s.pooling is not None]
        counts = [(s, count) for s, _, count in (*sampled, *pooled)]
        rows = [first_row[s.key] + i for s, count in counts for i in range(len(s.tokens) - count, len(s.tokens))]
        rows += [0] * (-len(rows) % ROW_MULTIPLE)
        return cls(
            ids_T=torch.tensor(ids + padding, device=device),
            positions_T=torch.tensor(positions + padding, device=device),
            slots_T=torch.tensor(slots + padding, device=device),
            groups=tuple(_group(members, block_tokens, device) for members in groups.values()),
            rows_R=torch.tensor(rows, dtype=torch.int64, device=device),
            sampled=tuple(s.key for s, _, count in sampled for _ in range(count)),
            guesses=tuple(guess for s, _, _ in sampled for guess in (*s.drafts, None)),
            sampling=tuple(sampling for _, sampling, count in sampled for _ in range(count)),
            sample_positions=tuple(s.start + s.num_known + i for s, _, count in sampled for i in range(count)),
            pooled=tuple((s.key, pooling, count) for s, pooling, count in pooled),
        )


def _num_rows(part: Slice) -> int:
    """Rows of a slice that are pooled: the last, which is the prompt's, or all."""
    return 1 if part.pooling == "last" else len(part.tokens)


def _bucket(num_slots: int) -> int:
    """Sequences within a factor of two in context length are computed together."""
    return (-(-num_slots // TILE_SLOTS) - 1).bit_length()


def _group(members: list[tuple[int, Slice]], block_tokens: int, device: torch.device) -> QueryGroup:
    num_tokens = len(members[0][1].tokens)
    num_slots = max(part.start + num_tokens for _, part in members)
    num_blocks = -(-num_slots // TILE_SLOTS) * TILE_SLOTS // block_tokens
    tables = [[*part.blocks, *[SCRATCH_BLOCK] * (num_blocks - len(part.blocks))] for _, part in members]
    steps = torch.arange(num_tokens, device=device)
    rows = torch.tensor([row for row, _ in members], device=device)
    starts = torch.tensor([part.start for _, part in members], device=device)
    return QueryGroup(
        rows=(rows[:, None] + steps).flatten(),
        positions=starts[:, None] + steps,
        blocks=torch.tensor(tables, device=device),
    )
