"""Rows of an encoded prompt, gathered over the steps that compute it: each of them, or their mean.

Knows rows of numbers and their order, not what they mean. However a prompt was cut into steps, the result has the
same bits: rows are kept as they are, and a mean is the sum of integers.
Shape legend: R rows, W width, L limbs.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from glm_cluster.engine.plan import Pooled
from glm_cluster.records import Encoded, Pooling

# An fp32 row is cut into integers of 40 bits, worth 2**88, 2**48, ... each: exact from the largest float down to
# 2**-72. What is smaller than that is dropped, the same way in every row. 2**23 rows fit an int64 sum.
_LIMB_EXPONENTS = (88, 48, 8, -32, -72)


def pool(rows_RW: Tensor, pooling: Pooling) -> Pooled:
    """The pooled rows of one slice, off the device."""
    return MeanOfRows.of(rows_RW) if pooling == "mean" else EachRow.of(rows_RW)


@dataclass(frozen=True, slots=True)
class EachRow:
    """Rows kept as they are, slice after slice."""

    parts: tuple[Tensor, ...]  # [R, W] each

    @classmethod
    def of(cls, rows_RW: Tensor) -> Self:
        """A copy, so that the step's whole tensor is not kept with it."""
        return cls((rows_RW.to("cpu", torch.float32, copy=True),))

    def plus(self, later: Self) -> Self:
        """With the rows of the tokens that follow."""
        return type(self)((*self.parts, *later.parts))

    def encoded(self, num_cached_tokens: int) -> Encoded:
        """All rows in one."""
        return _encoded(torch.cat(self.parts), num_cached_tokens)


@dataclass(frozen=True, slots=True)
class MeanOfRows:
    """A sum of rows that does not depend on the order or the grouping of its terms.

    A column with an infinity or a NaN has the mean that floating point gives it: that infinity, or NaN.
    """

    count: int
    limbs_LW: Tensor  # int64 sums of what is finite
    odd_W: Tensor  # fp64 sums of what is not; else 0

    @classmethod
    def of(cls, rows_RW: Tensor) -> Self:
        """The sum of some rows."""
        finite_RW = rows_RW.isfinite()
        rest_RW = rows_RW.double().where(finite_RW, 0)
        limbs = []
        for exponent in _LIMB_EXPONENTS:
            limb_RW = (rest_RW * 2.0**-exponent).trunc()
            rest_RW = rest_RW - limb_RW * 2.0**exponent  # exact: fewer bits of the same number
            limbs.append(limb_RW.long().sum(0))
        odd_W = rows_RW.double().masked_fill(finite_RW, 0).sum(0)
        return cls(rows_RW.shape[0], torch.stack(limbs).cpu(), odd_W.cpu())

    def plus(self, later: Self) -> Self:
        """With the rows of the tokens that follow."""
        return type(self)(self.count + later.count, self.limbs_LW + later.limbs_LW, self.odd_W + later.odd_W)

    def encoded(self, num_cached_tokens: int) -> Encoded:
        """The mean, in one row."""
        total_W = self.odd_W
        for exponent, limb_W in reversed(tuple(zip(_LIMB_EXPONENTS, self.limbs_LW, strict=True))):
            total_W = total_W + limb_W.double() * 2.0**exponent
        return _encoded((total_W / self.count).float().unsqueeze(0), num_cached_tokens)


def _encoded(rows_RW: Tensor, num_cached_tokens: int) -> Encoded:
    values = rows_RW.numpy().astype("<f4").tobytes()
    return Encoded(rows_RW.shape[0], rows_RW.shape[1], values, num_cached_tokens)
