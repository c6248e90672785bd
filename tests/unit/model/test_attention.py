"""Paged attention equals a plain softmax, and a row's bits depend on nothing but its own past."""

import pytest
import torch

from glm_cluster.model import attention
from glm_cluster.model.attention import KvCache, PagedAttention, QueryGroup, sum_tiles

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
        positions = torch.arange(start, end)
        slots = torch.tensor([table[p // BLOCK] * BLOCK + p % BLOCK for p in range(start, end)])
        blocks = table[: -(-end // 64) * 4] + [0] * max(0, -(-end // 64) * 4 - len(table))
        group = QueryGroup(torch.arange(end - start), positions.unsqueeze(0), torch.tensor([blocks]))
        out.append(PagedAttention(cache, slots, [group])(0, q[start:end], k[start:end], v[start:end]))
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


def test_trailing_zero_tiles_do_not_change_a_sum() -> None:
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([x, torch.zeros(2, 3, 12, 8)], dim=2)
    assert torch.equal(sum_tiles(x), sum_tiles(padded))
    torch.testing.assert_close(sum_tiles(x), x.sum(2))


def test_bits_do_not_depend_on_the_memory_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five sequences at once, then one by one and eight query rows at a time."""
    q, k, v = _qkv(5 * 20)
    positions = torch.arange(20).expand(5, 20)
    tables = torch.tensor([[2 * i + 1, 2 * i + 2, 0, 0] for i in range(5)])
    slots = torch.cat([t.repeat_interleave(BLOCK)[:20] * BLOCK + positions[0] % BLOCK for t in tables])
    group = QueryGroup(torch.arange(100), positions, tables)
    whole = PagedAttention(_cache(16), slots, [group])(0, q, k, v)
    monkeypatch.setattr(attention, "GATHER_BYTES", 1)
    monkeypatch.setattr(attention, "SCORE_BYTES", 1)
    assert torch.equal(PagedAttention(_cache(16), slots, [group])(0, q, k, v), whole)
