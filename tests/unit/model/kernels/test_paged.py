"""The kernels' attention answers as torch's does, and a query's bits depend on its own past alone."""

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from glm_cluster.model.attention import KvCache, PagedAttention, Ragged
from glm_cluster.model.kernels.build import Refusal
from glm_cluster.model.kernels.native import library
from glm_cluster.model.kernels.paged import NativeAttention

native = library()
pytestmark = pytest.mark.skipif(isinstance(native, Refusal), reason=getattr(native, "reason", ""))

DTYPES = [torch.bfloat16, torch.float32]
# query heads, KV heads, head width, slots in a block
SHAPES = [(6, 2, 32, 16), (8, 8, 24, 4), (16, 4, 128, 16), (4, 1, 8, 1), (16, 2, 64, 32), (3, 3, 66, 64)]
LENGTH = 1300  # more than a chunk of 1024, and no whole number of tiles


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    native.glm_set_threads(2)
    yield
    native.glm_set_threads(torch.get_num_threads())


class Pool:
    """Caches for both, and sequences of `LENGTH` tokens over shuffled blocks."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, sequences: int) -> None:
        self.heads, self.kv_heads, self.width, self.block_tokens = shape
        generator = torch.Generator().manual_seed(5)
        per_sequence = -(-LENGTH // self.block_tokens)
        numbers = list(range(1, per_sequence * sequences + 1))
        random.Random(3).shuffle(numbers)
        self.tables = [numbers[i * per_sequence : (i + 1) * per_sequence] for i in range(sequences)]
        size = (self.kv_heads, len(numbers) + 1, self.block_tokens, self.width)
        # stale content that must not show
        self.caches = [KvCache([torch.full(size, 7.0).to(dtype)], [torch.full(size, -9.0).to(dtype)]) for _ in range(2)]
        counts = (self.heads, self.kv_heads, self.kv_heads)
        self.qkv = [torch.randn(sequences, LENGTH, n, self.width, generator=generator).to(dtype) for n in counts]

    def step(self, parts: list[tuple[int, int, int]], *, by_torch: bool = False) -> list[Tensor]:
        """Answers for parts (sequence, start, stop) computed together."""
        starts, counts = [start for _, start, _ in parts], [stop - start for _, start, stop in parts]
        tables = [self.tables[s] for s, _, _ in parts]
        slots = [
            self.tables[s][p // self.block_tokens] * self.block_tokens + p % self.block_tokens
            for s, start, stop in parts
            for p in range(start, stop)
        ]
        first_rows = [sum(counts[:i]) for i in range(len(parts))]
        ragged = Ragged(slots, first_rows, counts, starts, tables)
        q, k, v = (torch.cat([x[s, start:stop] for s, start, stop in parts]) for x in self.qkv)
        if by_torch:
            return list(PagedAttention(self.caches[0], ragged)(0, q, k, v).split(counts))
        return list(NativeAttention(native, self.caches[1], ragged)(0, q, k, v).split(counts))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_answers_as_torch_does(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """fp32 within 1e-5; bf16 within two roundings, since weights are rounded before they meet the values."""
    pool = Pool(shape, dtype, 3)
    bound = 1e-5 if dtype == torch.float32 else 2**-6
    for parts in ([(0, 0, 1), (1, 0, 70), (2, 0, 1295)], [(0, 1, 2), (1, 70, 72), (2, 1295, 1300)]):
        for ours, wanted in zip(pool.step(parts), pool.step(parts, by_torch=True), strict=True):
            torch.testing.assert_close(ours.float(), wanted.float(), rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_query_has_the_same_bits_in_any_company(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """Whole; in chunks; token by token at the end; beside strangers, so many that chunks of keys are not split."""
    whole = Pool(shape, dtype, 1).step([(0, 0, LENGTH)])[0]
    for cuts in ([1, 64, 65, 700, LENGTH], [1023, 1024, 1025, *range(1280, LENGTH + 1)]):
        pool, parts = Pool(shape, dtype, 1), list(zip([0, *cuts], cuts, strict=False))
        assert torch.equal(torch.cat([pool.step([(0, *part)])[0] for part in parts]), whole)
    crowd = Pool(shape, dtype, 18)
    crowd.qkv = [torch.cat([own, x[1:]]) for own, x in zip(Pool(shape, dtype, 1).qkv, crowd.qkv, strict=True)]
    first = crowd.step([(s, 0, 1100 if s == 0 else 7 * s) for s in range(18)])
    then = crowd.step([(s, 1100, LENGTH) if s == 0 else (s, 7 * s, 7 * s + 1) for s in range(18)])
    assert torch.equal(torch.cat([first[0], then[0]]), whole)


def test_threads_do_not_move_a_bit() -> None:
    answers = []
    for threads in (1, 2, 5):
        native.glm_set_threads(threads)
        answers += Pool((8, 2, 64, 16), torch.bfloat16, 1).step([(0, 0, LENGTH)])
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_a_neighbour_full_of_nan_stays_alone_with_it() -> None:
    sound, sick = (Pool((4, 2, 32, 16), torch.bfloat16, 2) for _ in range(2))
    for x in sick.qkv:
        x[1] = float("nan")
    parts = [(0, 0, 70), (1, 0, 70)]
    wanted, got = sound.step(parts), sick.step(parts)
    assert torch.equal(got[0], wanted[0])
    assert got[1].isnan().all()
