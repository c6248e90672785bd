"""Collectives of tensors between ranks of one host, through memory that they share.

The sums have the bits of `Ranks.sum` over gloo. Knows when a group can use it: the native kernels are there and every
rank reaches the same memory. Refuses to know how the ranks met.
"""

import logging
import mmap
import os
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from glm_cluster.model import segment
from glm_cluster.model.kernels.build import Native, Refusal, native_kernels
from glm_cluster.model.kernels.collectives import MAX_SIZE, Dtype, HostCollectives, Patience
from glm_cluster.model.segment import Store
from glm_cluster.model.threads import usable_cores

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 4 << 20  # a tensor of any size goes through in chunks
SPIN_S = 100e-6
_DTYPES: dict[torch.dtype, Dtype] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


class SharedMemory:
    """One rank's end of its group's memory."""

    def __init__(self, collectives: HostCollectives, rank: int, size: int) -> None:
        self._collectives = collectives
        self._rank = rank
        self._size = size

    @classmethod
    def meet(cls, *, store: Store, rank: int, size: int, least: Callable[[int], int], timeout_s: float) -> Self | None:
        """Share memory with the other ranks, which call this too, or None on every rank. `least` is the group's."""
        kernels = (
            native_kernels() if size <= MAX_SIZE else Refusal(reason=f"{size} ranks are too many to share memory.")
        )
        if not least(isinstance(kernels, Native)):
            _log(rank, kernels.reason if isinstance(kernels, Refusal) else "Another rank has no native kernels.")
            return None
        memory = segment.share(store, rank, SEGMENT_BYTES)
        if not least(memory is not None):
            _log(rank, "The ranks share no memory: they run on several hosts, or in several containers.")
            return None
        assert isinstance(kernels, Native)
        assert isinstance(memory, mmap.mmap)
        patience = Patience(spin_s=SPIN_S if usable_cores() >= size else 0.0, timeout_s=timeout_s)
        lives = _lives(store, rank, size)
        return cls(HostCollectives(kernels, memory, rank=rank, lives=lives, patience=patience), rank, size)

    def can_sum(self, x: Tensor) -> bool:
        """Whether `sum` knows the tensor's dtype."""
        return x.dtype in _DTYPES

    def sum(self, x: Tensor) -> Tensor:
        """Add up the ranks' tensors in rank order, in fp32, rounded once."""
        x = x.contiguous()
        out = torch.empty_like(x)
        self._collectives.sum(x.data_ptr(), out.data_ptr(), x.numel(), _DTYPES[x.dtype])
        return out

    def gather(self, x: Tensor) -> Tensor | None:
        """Join the ranks' [R, v] along the last dimension on rank 0, [R, v * size]; None on the others."""
        x = x.contiguous()
        width = x.shape[-1]
        out = x.new_empty(*x.shape[:-1], width * self._size) if self._rank == 0 else None
        num_rows, row_bytes = x.numel() // width, width * x.element_size()
        self._collectives.gather(x.data_ptr(), 0 if out is None else out.data_ptr(), num_rows, row_bytes)
        return out


def _log(rank: int, reason: str) -> None:
    """Say once for the group why it goes without."""
    if rank == 0:
        logger.warning("Sums between ranks go through gloo, which is slower. %s", reason)


def _lives(store: Store, rank: int, size: int) -> list[int | None]:
    """A descriptor for each rank's process by which to know that it ended; None where the kernel has none."""
    store.set(f"glm_cluster/pid/{rank}", str(os.getpid()))
    return [_life(int(store.get(f"glm_cluster/pid/{peer}"))) for peer in range(size)]


def _life(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
