"""A linear layer whose weight lies as the kernels read it. One layout serves one row and many.

Shape legend: K columns in, N columns out.
"""

import ctypes
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from glm_cluster.model.kernels.native import DTYPES, Weight, address
from glm_cluster.records import Quantization

PANEL_ROWS = 64


class PackedLinear(nn.Module):
    """y = x W^T + b. A row of y has the same bits whatever the other rows are, and on any number of threads.

    With int8, weights have a scale for each row of W, and activations one for each row of x.
    """

    def __init__(self, native: ctypes.CDLL, linears: Sequence[nn.Linear], quantization: Quantization = "none") -> None:
        """Pack `linears`, which read the same x, as one: their outputs side by side. They lose their weights."""
        super().__init__()
        first = linears[0].weight
        self._native, self._dtype = native, first.dtype
        self._columns, self._rows = first.shape[1], sum(linear.weight.shape[0] for linear in linears)
        kind = torch.int8 if quantization == "int8" else first.dtype
        num_words = -(-self._columns * kind.itemsize // 4)
        num_panels = -(-self._rows // PANEL_ROWS)
        self._words = _pages(num_panels * PANEL_ROWS * num_words)
        self._scales = torch.zeros(self._rows) if kind == torch.int8 else None
        self._offsets = torch.zeros(self._rows, dtype=torch.int32) if kind == torch.int8 else None
        biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        self.packed = Weight(
            words=address(self._words),
            scales=address(self._scales),
            offsets=address(self._offsets),
            bias=address(self._bias),
            rows=self._rows,
            columns=self._columns,
            dtype=DTYPES[kind],
        )
        at = 0
        for linear in linears:
            weight = linear.weight.contiguous()
            native.glm_pack(self.packed, at, address(weight), weight.shape[0], DTYPES[weight.dtype])
            at += weight.shape[0]
            linear.register_parameter("weight", None)  # so that it is freed, whoever still knows the plain layer

    @property
    def num_bytes(self) -> int:
        """What the packed weight takes."""
        return sum(t.numel() * t.element_size() for t in (self._words, self._scales, self._offsets) if t is not None)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self._rows)
        self._native.glm_linear(self.packed, address(x), address(y), x.numel() // self._columns, DTYPES[self._dtype])
        return y


def _pages(num_words: int) -> Tensor:
    """Zeroed int32 words, in huge pages where the host gives them: a step reads every one."""
    pages = mmap.mmap(-1, num_words * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.int32)
