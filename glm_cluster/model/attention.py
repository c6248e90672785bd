"""Attention over keys and values that somebody keeps: what a layer calls, and the engine's answer to it in torch.

`PagedAttention` is ragged, over KV blocks, and a row's result depends on nothing but its own query and its own keys and
values: not on the batch, not on how its tokens were split into steps. The plain forward has HF's (`reference`).

Shape legend: T query tokens, N query heads, K KV heads, G = N / K, D head width, S sequences in a group,
C context slots (padded to whole tiles), J tiles, W = 64 slots in a tile, M query rows (tokens x G, padded to 8).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_SLOTS = 64
SCRATCH_BLOCK = 0
ROW_MULTIPLE = 8  # fp32 GEMM rows are bit-equal whatever their number once it is a multiple of 8 (measured, MKL)
GATHER_BYTES = 256 * 2**20  # of keys and values unpacked at once: bounds the sequences computed together
SCORE_BYTES = 64 * 2**20  # of one score matrix: bounds the query rows computed together


class Attend(Protocol):
    """What a layer calls: store k and v [..., T, K, D], answer queries [..., T, N, D] with [..., T, N, D]."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class KvCache:
    """Keys and values of every layer in blocks, a tensor [K, num_blocks, block_tokens, D] each.

    Block 0 is scratch: padding rows of a batch write there and nothing reads it.
    """

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def block_tokens(self) -> int:
        """Slots in a block."""
        return self.keys[0].shape[2]


@dataclass(frozen=True, slots=True)
class Ragged:
    """How a step's tokens lie: sequence after sequence, then padding rows, which belong to none."""

    slots: Sequence[int]  # [T] flat slot of each token; padding rows write to the scratch block
    first_rows: Sequence[int]  # [S] where each sequence's tokens begin
    num_tokens: Sequence[int]  # [S]
    starts: Sequence[int]  # [S] position of its first token of the step
    tables: Sequence[Sequence[int]]  # [S] its blocks


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """Sequences whose attention is computed together: the same number of query tokens and of context tiles each."""

    rows: Tensor  # [S * T] where each sequence's query tokens stand in the step
    positions: Tensor  # [S, T] their positions
    blocks: Tensor  # [S, C / block_tokens] block table, padded with the scratch block


class PagedAttention:
    """The step's attention over `cache`: write the new keys and values, then answer each group of queries.

    The order of every sum is fixed by positions alone: scores are dot products over D, each tile of 64 slots is
    reduced by itself, and tiles are joined in a binary tree by index. Inside, everything is fp32.
    """

    def __init__(self, cache: KvCache, ragged: Ragged) -> None:
        self._cache = cache
        device = cache.keys[0].device
        self._slots = torch.tensor(ragged.slots, device=device)
        self._groups = query_groups(ragged, cache.block_tokens, device)

    def __call__(self, layer: int, q_TND: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys.flatten(1, 2).index_copy_(1, self._slots, k_TKD.transpose(0, 1))
        values.flatten(1, 2).index_copy_(1, self._slots, v_TKD.transpose(0, 1))
        mixed_TND = torch.zeros_like(q_TND)
        for group in self._groups:
            q_STND = torch.unflatten(q_TND[group.rows], 0, group.positions.shape)
            mixed_TND[group.rows] = _attend_group(q_STND, group, keys, values).flatten(0, 1).to(q_TND.dtype)
        return mixed_TND


def query_groups(ragged: Ragged, block_tokens: int, device: torch.device) -> list[QueryGroup]:
    """The sequences by what can be computed together: context lengths within a factor of two."""
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (count, start) in enumerate(zip(ragged.num_tokens, ragged.starts, strict=True)):
        members[count, (-(-(start + count) // TILE_SLOTS) - 1).bit_length()].append(index)
    return [_group(ragged, indices, block_tokens, device) for indices in members.values()]


def _group(ragged: Ragged, members: Sequence[int], block_tokens: int, device: torch.device) -> QueryGroup:
    num_tokens = ragged.num_tokens[members[0]]
    num_slots = max(ragged.starts[i] for i in members) + num_tokens
    num_blocks = -(-num_slots // TILE_SLOTS) * TILE_SLOTS // block_tokens
    tables = [(*ragged.tables[i], *[SCRATCH_BLOCK] * num_blocks)[:num_blocks] for i in members]
    steps = torch.arange(num_tokens, device=device)
    rows = torch.tensor([ragged.first_rows[i] for i in members], device=device)
    starts = torch.tensor([ragged.starts[i] for i in members], device=device)
    return QueryGroup(
        rows=(rows[:, None] + steps).flatten(),
        positions=starts[:, None] + steps,
        blocks=torch.tensor(tables, device=device),
    )


def _attend_group(q_STND: Tensor, group: QueryGroup, keys: Tensor, values: Tensor) -> Tensor:
    """Answer one group's queries [S, T, N, D] in fp32, so many sequences at once as GATHER_BYTES allow."""
    num_slots = group.blocks.shape[1] * keys.shape[2]
    size = max(1, GATHER_BYTES // (2 * 4 * keys.shape[0] * num_slots * keys.shape[-1]))
    parts = zip(*(torch.split(x, size) for x in (q_STND, group.positions, group.blocks)), strict=True)
    return torch.cat([_attend_sequences(q, positions, blocks, keys, values) for q, positions, blocks in parts])


def _attend_sequences(q_STND: Tensor, positions_ST: Tensor, blocks_SC: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    num_sequences, num_tokens = positions_ST.shape
    num_kv_heads, head_dim = keys.shape[0], keys.shape[-1]
    per_kv_head = q_STND.shape[2] // num_kv_heads
    k_KSJWD, v_KSJWD = (_tiles(x, blocks_SC) for x in (keys, values))
    slots_JW = torch.arange(v_KSJWD[0, 0, :, :, 0].numel(), device=keys.device).view(-1, TILE_SLOTS)
    unseen_SJW = slots_JW > positions_ST.amax(1)[:, None, None]
    v_KSJWD.masked_fill_(unseen_SJW.unsqueeze(-1), 0.0)  # what a block's last owner left may be NaN, and 0 * NaN is NaN
    q_KSMD = torch.unflatten(q_STND.float(), 2, (num_kv_heads, per_kv_head)).permute(2, 0, 1, 3, 4).flatten(2, 3)
    positions_SM = positions_ST.repeat_interleave(per_kv_head, dim=1)
    pad = -q_KSMD.shape[2] % ROW_MULTIPLE
    q_KSMD, positions_SM = F.pad(q_KSMD, (0, 0, 0, pad)), F.pad(positions_SM, (0, pad))
    row_bytes = 4 * k_KSJWD.numel() // head_dim
    rows = max(1, SCORE_BYTES // row_bytes // ROW_MULTIPLE) * ROW_MULTIPLE
    parts = [
        _attend_rows(q, positions, k_KSJWD, v_KSJWD, head_dim**-0.5)
        for q, positions in zip(torch.split(q_KSMD, rows, 2), torch.split(positions_SM, rows, 1), strict=True)
    ]
    out_KSMD = torch.cat(parts, dim=2)[:, :, : num_tokens * per_kv_head]
    out = torch.unflatten(out_KSMD, 2, (num_tokens, per_kv_head)).permute(1, 2, 0, 3, 4)
    return out.reshape(num_sequences, num_tokens, -1, head_dim)


def _tiles(cache: Tensor, blocks_SC: Tensor) -> Tensor:
    """Gather a group's blocks in fp32 as [K, S, J, W, D]."""
    num_kv_heads, _, _, head_dim = cache.shape
    gathered = cache.index_select(1, blocks_SC.flatten()).float()
    return gathered.view(num_kv_heads, blocks_SC.shape[0], -1, TILE_SLOTS, head_dim)


def _attend_rows(q_KSMD: Tensor, positions_SM: Tensor, k_KSJWD: Tensor, v_KSJWD: Tensor, scale: float) -> Tensor:
    num_tiles = k_KSJWD.shape[2]
    q_KSJMD = q_KSMD.unsqueeze(2).expand(-1, -1, num_tiles, -1, -1)
    scores_KSJMW = (q_KSJMD @ k_KSJWD.transpose(-1, -2)).mul_(scale)
    slots_JW = torch.arange(num_tiles * TILE_SLOTS, device=q_KSMD.device).view(num_tiles, 1, TILE_SLOTS)
    future_SJMW = slots_JW > positions_SM[:, None, :, None]
    scores_KSJMW.masked_fill_(future_SJMW, float("-inf"))
    peak_KSM = scores_KSJMW.amax(dim=(2, 4))
    weights_KSJMW = scores_KSJMW.sub_(peak_KSM[:, :, None, :, None]).exp_()
    total_KSM = sum_tiles(weights_KSJMW.sum(-1))
    mixed_KSMD = sum_tiles(weights_KSJMW @ v_KSJWD)
    return mixed_KSMD / total_KSM.unsqueeze(-1)


def sum_tiles(x_KSJ: Tensor) -> Tensor:
    """Add over dimension 2 in a binary tree by index; trailing zero tiles do not change a bit of the result."""
    while x_KSJ.shape[2] > 1:
        if x_KSJ.shape[2] % 2:
            x_KSJ = torch.cat([x_KSJ, torch.zeros_like(x_KSJ[:, :, :1])], dim=2)
        x_KSJ = x_KSJ[:, :, 0::2] + x_KSJ[:, :, 1::2]
    return x_KSJ.squeeze(2)
