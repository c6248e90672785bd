"""Through shared memory a group gets the very bits that it gets through gloo, and it uses gloo where it shares none."""

import logging
import mmap

import pytest
import torch
from support.groups import join_threads, on_every_rank
from torch import Tensor

from glm_cluster.model import segment
from glm_cluster.model.kernels.build import SWITCH, Refusal, native_kernels
from glm_cluster.model.ranks import Ranks
from glm_cluster.model.shared_memory import SEGMENT_BYTES

pytestmark = [
    pytest.mark.parallel,
    pytest.mark.skipif(isinstance(native_kernels(), Refusal), reason="the native kernels are refused here"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 33, 1000, 32_771, SEGMENT_BYTES // 2 + 7]  # one number; odd; by shares; in several chunks
SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 65504.0, 6e-8, 1e-40, -3e-41, 1.0, 2**-9]


@pytest.fixture(scope="module", params=[2, 3, 4, 5])
def groups(request: pytest.FixtureRequest) -> tuple[list[Ranks], list[Ranks]]:
    """The same ranks, sharing memory and through gloo."""
    shared, gloo = join_threads(request.param), join_threads(request.param, backend="gloo")
    assert all(_shares(ranks) for ranks in shared)
    assert not any(_shares(ranks) for ranks in gloo)
    return shared, gloo


def _shares(ranks: Ranks) -> bool:
    return ranks._shared is not None


def _part(rank: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers whose sum depends on the order of its terms, other ones for each rank."""
    generator = torch.Generator().manual_seed(rank)
    wide = torch.randn(*shape, generator=generator) * torch.randint(-12, 6, shape, generator=generator).float().exp2()
    return wide.to(dtype)


def _sums(group: list[Ranks], parts: list[Tensor]) -> list[Tensor]:
    return on_every_rank(len(group), lambda rank: group[rank].sum(parts[rank]))


def _same(a: Tensor, b: Tensor) -> bool:
    """The same bits, where a NaN is one whatever its payload."""
    bits = torch.int32 if a.dtype == torch.float32 else torch.int16
    return a.dtype == b.dtype and bool(((a.view(bits) == b.view(bits)) | (a.isnan() & b.isnan())).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", SIZES)
def test_sums_are_gloos_to_the_bit(groups: tuple[list[Ranks], list[Ranks]], count: int, dtype: torch.dtype) -> None:
    shared, gloo = groups
    parts = [_part(rank, count, dtype=dtype) for rank in range(len(shared))]
    kept = [part.clone() for part in parts]
    (wanted, *_), ours = _sums(gloo, parts), _sums(shared, parts)
    assert all(_same(one, wanted) for one in ours)
    assert all(_same(part, copy) for part, copy in zip(parts, kept, strict=True))  # read, not written


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_special_numbers(groups: tuple[list[Ranks], list[Ranks]], dtype: torch.dtype) -> None:
    """Every pair of them, in every place of a vector register and of what is left over."""
    shared, gloo = groups
    pairs = torch.cartesian_prod(torch.tensor(SPECIAL), torch.tensor(SPECIAL)).to(dtype)
    parts = [pairs[:, rank % 2].repeat(3) for rank in range(len(shared))]
    assert _same(_sums(shared, parts)[0], _sums(gloo, parts)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fraction", [0.0, 2**-9, 3 * 2**-12])
def test_every_half_is_widened_and_rounded(dtype: torch.dtype, fraction: float) -> None:
    """All 65536 patterns, plus nothing and plus what makes many of the sums ties or nearly so."""
    halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    other = halves * fraction
    wanted = (halves.float() + other.float()).to(dtype)
    assert _same(_sums(join_threads(2), [halves, other])[1], wanted)


def test_many_sums_in_a_row_do_not_mix(groups: tuple[list[Ranks], list[Ranks]]) -> None:
    """Ranks of different pace: each writes its next part while others still read the last."""
    shared, _ = groups
    size = len(shared)

    def work(rank: int) -> list[float]:
        rounds = range(200)
        return [shared[rank].sum(torch.full((40_000 if i % 3 else 9,), float(i + rank))).max().item() for i in rounds]

    wanted = [float(size * i + sum(range(size))) for i in range(200)]
    assert on_every_rank(size, work) == [wanted] * size


@pytest.mark.parametrize("shape", [(1, 1), (3, 257), (64, 75_776), (2, 5, 33)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_are_joined_on_rank_0(
    groups: tuple[list[Ranks], list[Ranks]], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    shared, _ = groups
    parts = [_part(rank, *shape, dtype=dtype) for rank in range(len(shared))]
    joined, *others = on_every_rank(len(shared), lambda rank: shared[rank].gather(parts[rank]))
    assert torch.equal(joined, torch.cat(parts, dim=-1))
    assert others == [None] * (len(shared) - 1)


def test_what_does_not_lie_in_one_piece(groups: tuple[list[Ranks], list[Ranks]]) -> None:
    shared, _ = groups
    parts = [_part(rank, 7, 5).T for rank in range(len(shared))]
    sums = _sums(shared, parts)
    assert torch.equal(sums[0], _sums(shared, [part.contiguous() for part in parts])[0])
    joined = on_every_rank(len(shared), lambda rank: shared[rank].gather(parts[rank]))[0]
    assert torch.equal(joined, torch.cat(parts, dim=-1))


def test_nothing_to_add_and_nothing_to_join(groups: tuple[list[Ranks], list[Ranks]]) -> None:
    shared, _ = groups
    empty = torch.empty(0, 6)
    assert [x.shape for x in _sums(shared, [empty] * len(shared))] == [(0, 6)] * len(shared)
    assert on_every_rank(len(shared), lambda rank: shared[rank].gather(empty))[0].shape == (0, 6 * len(shared))


def test_other_dtypes_go_through_gloo(groups: tuple[list[Ranks], list[Ranks]]) -> None:
    shared, _ = groups
    sums = _sums(shared, [torch.full((3,), rank) for rank in range(len(shared))])
    assert torch.equal(sums[0], torch.full((3,), sum(range(len(shared)))))


def test_without_kernels_a_group_uses_gloo_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(SWITCH, "off")
    with caplog.at_level(logging.WARNING):
        group = join_threads(2)
    assert not any(_shares(ranks) for ranks in group)
    assert torch.equal(_sums(group, [torch.ones(3)] * 2)[0], torch.full((3,), 2.0))
    (record,) = caplog.records  # of rank 0 alone
    assert SWITCH in record.getMessage()


def test_one_rank_out_of_reach_takes_the_whole_group_to_gloo(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a rank runs on another host: it finds no memory, and the others must not wait for it there."""
    share = segment.share

    def blind(store: segment.Store, rank: int, num_bytes: int) -> mmap.mmap | None:
        memory = share(store, rank, num_bytes)
        return None if rank == 2 else memory

    monkeypatch.setattr(segment, "share", blind)
    with caplog.at_level(logging.WARNING):
        group = join_threads(3)
    assert not any(_shares(ranks) for ranks in group)
    assert torch.equal(_sums(group, [torch.ones(3)] * 3)[2], torch.full((3,), 3.0))
    assert "several hosts" in caplog.text
