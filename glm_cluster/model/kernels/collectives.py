"""The calls of `collectives.cc`, with addresses for tensors and an error for a meeting that did not take place.

Knows the library's signatures and one rank's handle. Refuses to know where the segment comes from, and torch.
"""

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from glm_cluster.model.kernels.build import Native

MAX_SIZE = 64  # ranks; the segment's header has this many places
Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]

_DTYPES: dict[Dtype, int] = {"float32": 0, "bfloat16": 1, "float16": 2}
_TIMEOUT = 1
_NS = 1_000_000_000


class CollectiveError(RuntimeError):
    """The others of the group did not come. An echo of what happened to them, so none of the errors users meet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a rank waits for the others."""

    spin_s: float  # looking, before it sleeps
    timeout_s: float


class HostCollectives:
    """One rank's end of the segment. After an error the group cannot be used any more."""

    def __init__(
        self, native: Native, segment: mmap.mmap, *, rank: int, lives: Sequence[int | None], patience: Patience
    ) -> None:
        """`lives` has a pidfd for each rank, owned from now on; None where a process cannot be watched."""
        self._library = library = _declared(native.library)
        self._patience = patience
        self._failure: str | None = None
        memory = (ctypes.c_char * len(segment)).from_buffer(segment)  # keeps the segment mapped
        fds = (ctypes.c_int * len(lives))(*(-1 if fd is None else fd for fd in lives))
        self._group = library.glm_group_open(
            memory, len(segment), rank, len(lives), fds, int(patience.spin_s * _NS), int(patience.timeout_s * _NS)
        )
        owned = [fd for fd in lives if fd is not None]
        # Not at exit, when another thread may still be inside a call.
        weakref.finalize(self, _close, library, self._group, memory, owned).atexit = False

    def sum(self, x: int, out: int, count: int, dtype: Dtype) -> None:
        """Add up the ranks' `count` numbers at `x`, in rank order and fp32, into those at `out`, elsewhere."""
        self._call(self._library.glm_group_sum, x, out, count, _DTYPES[dtype])

    def gather(self, part: int, out: int, num_rows: int, row_bytes: int) -> None:
        """Put the ranks' rows beside each other at rank 0's `out`; the other ranks' `out` is not looked at."""
        self._call(self._library.glm_group_gather, part, out, num_rows, row_bytes)

    def _call(self, function: Callable[..., int], *arguments: int) -> None:
        if self._failure is None:
            status = function(self._group, *arguments)
            if status == 0:
                return
            missing = self._library.glm_group_missing(self._group)
            late = f"did not come to a collective within {self._patience.timeout_s:g} s"
            self._failure = f"rank {missing} {late if status == _TIMEOUT else 'ended before a collective'}"
        raise CollectiveError(f"{self._failure}; start the group anew")


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.glm_group_open.argtypes = (pointer, size, number, number, pointer, size, size)
    library.glm_group_open.restype = pointer
    library.glm_group_sum.argtypes = (pointer, pointer, pointer, size, number)
    library.glm_group_gather.argtypes = (pointer, pointer, pointer, size, size)
    library.glm_group_missing.argtypes = (pointer,)
    library.glm_group_close.argtypes = (pointer,)
    library.glm_group_close.restype = None
    return library


def _close(library: ctypes.CDLL, group: int, memory: object, fds: list[int]) -> None:
    """End a rank's part; `memory` is let go after the library's last look at it."""
    library.glm_group_close(group)
    for fd in fds:
        os.close(fd)
