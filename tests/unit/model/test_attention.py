"""Paged attention equals a plain softmax, and a row's bits depend on nothing but its own past."""

import pytest
import torch

from glm_cluster.model import attention
from glm_cluster.model.attention import KvCache, PagedAttention, Ragged, query_groups, sum_tiles

HEADS, KV_HEADS, WIDTH, BLOCK = 6, 2, 32, 16


def _cache(num_blocks: int) -> KvCache:
    shape = (KV_HEADS, num_blocks, BLOCK, WIDTH)
    return KvCache([torch.full(shape, 7.0)], [torch.full(shape, -9.0)])  # stale content that must not show


def _qkv(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return (
        torch.randn(num_tokens, HEADS, WIDTH, generator=g),
        torch.randn(num_tokens, KV_HEADS, WIDTH, generator=g),
        torch.randn(num_tokens, KV_HEADS, WIDTH, generator=g),
    )


def _run(cuts: list[int], table: list[int], num_tokens: int) -> torch.Tensor:
    """Feed one sequence in chunks ending at `cuts`, through the block table."""
    q, k, v = _qkv(num_tokens)
    cache, out, start = _cache(32), [], 0
    for end in cuts:
        slots = [table[p // BLOCK] * BLOCK + p % BLOCK for p in range(start, end)]
        ragged = Ragged(slots, [0], [end - start], [start], [table])
        out.append(PagedAttention(cache, ragged)(0, q[start:end], k[start:end], v[start:end]))
        start = end
    return torch.cat(out)


@pytest.mark.parametrize("num_tokens", [1, 15, 64, 65, 130])
def test_equals_plain_softmax(num_tokens: int) -> None:
    q, k, v = _qkv(num_tokens)
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (k, v))
    scores = torch.einsum("qnd,knd->nqk", q, k) * WIDTH**-0.5
    scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
    wanted = torch.einsum("nqk,knd->qnd", scores.softmax(-1), v)
    table = list(range(1, 13))
    torch.testing.assert_close(_run([num_tokens], table, num_tokens), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cuts", [[130], [1, 130], [64, 130], [63, 65, 130], list(range(1, 131))], ids=len)
def test_bits_do_not_depend_on_the_chunks(cuts: list[int]) -> None:
    table = [5, 3, 9, 1, 12, 7, 2, 8, 11]
    assert torch.equal(_run(cuts, table, 130), _run([7, 50, 130], list(range(1, 10)), 130))


def test_what_a_block_s_last_owner_left_does_not_show() -> None:
    q, k, v = _qkv(5)
    ragged = Ragged(range(BLOCK, BLOCK + 5), [0], [5], [0], [(1,)])
    clean, stale = _cache(4), _cache(4)
    stale.keys[0].fill_(float("nan"))
    stale.values[0].fill_(float("nan"))
    assert torch.equal(PagedAttention(stale, ragged)(0, q, k, v), PagedAttention(clean, ragged)(0, q, k, v))


def test_trailing_zero_tiles_do_not_change_a_sum() -> None:
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([x, torch.zeros(2, 3, 12, 8)], dim=2)
    assert torch.equal(sum_tiles(x), sum_tiles(padded))
    torch.testing.assert_close(sum_tiles(x), x.sum(2))


def test_bits_do_not_depend_on_the_memory_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five sequences at once, then one by one and eight query rows at a time."""
    q, k, v = _qkv(5 * 20)
    tables = [(2 * i + 1, 2 * i + 2) for i in range(5)]
    slots = [table[p // BLOCK] * BLOCK + p % BLOCK for table in tables for p in range(20)]
    ragged = Ragged(slots, [0, 20, 40, 60, 80], [20] * 5, [0] * 5, tables)
    whole = PagedAttention(_cache(16), ragged)(0, q, k, v)
    monkeypatch.setattr(attention, "GATHER_BYTES", 1)
    monkeypatch.setattr(attention, "SCORE_BYTES", 1)
    assert torch.equal(PagedAttention(_cache(16), ragged)(0, q, k, v), whole)


def test_groups_hold_equal_lengths_and_whole_tiles() -> None:
    tables = [(5, 6), (1, 2, 3, 4), (7, 8, 9, 10, 3), (12,)]
    ragged = Ragged([0] * 8, [0, 3, 4, 5], [3, 1, 1, 1], [16, 63, 64, 2], tables)
    groups = {tuple(g.rows.tolist()): g for g in query_groups(ragged, 16, torch.device("cpu"))}
    assert set(groups) == {(0, 1, 2), (3, 5), (4,)}
    assert groups[3, 5].blocks.tolist() == [[1, 2, 3, 4], [12, 0, 0, 0]]
    assert groups[3, 5].positions.tolist() == [[63], [2]]
    assert groups[4,].blocks.tolist() == [[7, 8, 9, 10, 3, 0, 0, 0]]
