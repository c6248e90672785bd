"""Pooled rows: each as it was, or a mean whose bits do not depend on how its rows came."""

import math
import random
import struct
from fractions import Fraction
from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glm_cluster.engine.pooling import pool
from glm_cluster.records import Encoded, Pooling

INF, NAN = math.inf, math.nan
SMALLEST = 2.0**-72  # what a mean still sees


def _encoded(rows: Tensor, pooling: Pooling, cuts: list[int]) -> Encoded:
    """Pool `rows` in chunks that end at `cuts`."""
    ends = sorted({min(cut, len(rows)) for cut in cuts} | {len(rows)} - {0})
    parts = [pool(rows[start:end], pooling) for start, end in zip([0, *ends], ends, strict=False) if end > start]
    return reduce(lambda sofar, part: sofar.plus(part), parts).encoded(0)


def _values(encoded: Encoded) -> list[float]:
    return list(struct.unpack(f"<{encoded.num_rows * encoded.width}f", encoded.values))


def _mean(*column: float) -> float:
    return _values(_encoded(torch.tensor(column).unsqueeze(1), "mean", []))[0]


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
matrices = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(floats, min_size=width, max_size=width), min_size=1, max_size=40)
)


@given(matrices, st.lists(st.integers(1, 40)), st.randoms(use_true_random=False))
def test_a_mean_depends_neither_on_chunks_nor_on_order(raw: list[list[float]], cuts: list[int], rng: random.Random):
    whole = _encoded(torch.tensor(raw), "mean", [])
    assert _encoded(torch.tensor(raw), "mean", cuts) == whole
    rng.shuffle(raw)
    assert _encoded(torch.tensor(raw), "mean", cuts) == whole


@given(st.lists(floats, min_size=1, max_size=40))
def test_a_mean_is_the_exact_one_rounded(column: list[float]):
    """Within one unit of fp32, plus what 53 bits of the largest term and the cut at 2**-72 leave."""
    exact = sum(map(Fraction, column)) / len(column)
    bound = abs(exact) * Fraction(2) ** -23 + Fraction(max(map(abs, column))) * Fraction(2) ** -45 + Fraction(SMALLEST)
    assert abs(Fraction(_mean(*column)) - exact) <= bound


def test_extremes_of_a_mean():
    largest = torch.finfo(torch.float32).max
    assert _mean(largest, largest, largest) == largest
    assert _mean(largest, -largest, 3.0) == 1.0
    assert _mean(1e30, 1.0, -1e30, 1.0) == 0.5
    assert _mean(SMALLEST, SMALLEST) == SMALLEST
    assert _mean(SMALLEST / 2) == 0.0


@pytest.mark.parametrize(("column", "mean"), [((1, INF), INF), ((-INF, 2), -INF), ((INF, -INF), NAN), ((NAN, 1), NAN)])
def test_what_is_not_finite_stays_in_its_column(column: tuple[float, ...], mean: float):
    rows = torch.stack([torch.tensor(column), torch.ones(len(column))], dim=1)
    for cuts in ([], [1]):
        assert _values(_encoded(rows, "mean", cuts)) == pytest.approx([mean, 1.0], nan_ok=True)


def test_many_rows_do_not_overflow():
    rows = torch.full((1, 1), -(2.0**100)).expand(5000, 1)
    assert _values(_encoded(rows, "mean", [1000, 2000])) == [-(2.0**100)]


@pytest.mark.parametrize("pooling", ["tokens", "last"])
def test_rows_are_kept_bit_for_bit(pooling: Pooling):
    rows = torch.tensor([[1.5, -0.0], [1e-40, INF], [2.0, 3.0]])
    encoded = _encoded(rows, pooling, [1, 2])
    assert (encoded.num_rows, encoded.width) == (3, 2)
    assert encoded.values == rows.numpy().astype("<f4").tobytes()


def test_half_precision_is_widened():
    rows = torch.tensor([[1.0, 3.0], [2.0, 5.0]], dtype=torch.bfloat16)
    assert _values(_encoded(rows, "tokens", [])) == [1.0, 3.0, 2.0, 5.0]
    assert _values(_encoded(rows, "mean", [1])) == [1.5, 4.0]


def test_kept_rows_do_not_hold_the_step():
    rows = torch.zeros(512, 64)
    (part,) = pool(rows[:1], "last").parts
    assert part.untyped_storage().nbytes() == 64 * 4
