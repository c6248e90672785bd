"""Ranks that do not come are waited for only so long, and a rank that came is not missed."""

import mmap
import os
import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest

from glm_cluster.model.kernels.build import Native, native_kernels
from glm_cluster.model.kernels.collectives import CollectiveError, HostCollectives, Patience

Join = Callable[..., HostCollectives]
BYTES = 1 << 20


@pytest.fixture(scope="module")
def native() -> Native:
    kernels = native_kernels()
    if not isinstance(kernels, Native):
        pytest.skip(kernels.reason)
    return kernels


@pytest.fixture
def join(native: Native) -> Join:
    """Make a rank's end of one segment."""
    segment = mmap.mmap(-1, BYTES)

    def make(rank: int, size: int, *, pids: dict[int, int] | None = None, timeout_s: float = 20.0) -> HostCollectives:
        lives = [os.pidfd_open(pid) if (pid := (pids or {}).get(peer)) else None for peer in range(size)]
        patience = Patience(spin_s=1e-5, timeout_s=timeout_s)
        return HostCollectives(native, segment, rank=rank, lives=lives, patience=patience)

    return make


def _add(group: HostCollectives, value: float, count: int = 5) -> list[float]:
    x = np.full(count, value, np.float32)
    out = np.empty_like(x)
    group.sum(x.ctypes.data, out.ctypes.data, count, "float32")
    return out.tolist()


def _try_to_add(group: HostCollectives) -> None:
    with suppress(CollectiveError):
        _add(group, 1.0)


def _forked(work: Callable[[], object]) -> int:
    """Run `work` in a process that ends without a word, whatever happens."""
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            work()
        os._exit(0)
    return pid


def test_processes_add_up(join: Join) -> None:
    group, other = join(0, 2), join(1, 2)
    child = _forked(lambda: [_add(other, 2.0) for _ in range(3)])
    assert [_add(group, 1.0) for _ in range(3)] == [[3.0] * 5] * 3
    os.waitpid(child, 0)


def test_who_waits_too_long_is_told_for_whom(join: Join) -> None:
    group = join(0, 3, timeout_s=0.05)
    thread = threading.Thread(target=_try_to_add, args=(join(1, 3, timeout_s=0.05),))
    thread.start()
    with pytest.raises(CollectiveError, match=r"rank 2 did not come to a collective within 0\.05 s"):
        _add(group, 1.0)
    thread.join()


def test_after_a_failure_every_call_fails(join: Join) -> None:
    group = join(0, 2, timeout_s=0.05)
    with pytest.raises(CollectiveError):
        _add(group, 1.0)
    late = join(1, 2, timeout_s=0.05)
    _try_to_add(late)
    for _ in range(2):
        with pytest.raises(CollectiveError, match="rank 1 did not come"):
            _add(group, 1.0)


def test_a_rank_that_ended_is_not_waited_for(join: Join) -> None:
    child = _forked(lambda: _add(join(1, 2), 2.0))
    group = join(0, 2, pids={1: child})
    assert _add(group, 1.0) == [3.0] * 5
    with pytest.raises(CollectiveError, match="rank 1 ended"):
        _add(group, 1.0)
    os.waitpid(child, 0)


def test_a_rank_that_came_before_it_ended_is_no_loss(join: Join) -> None:
    """Its part lies in the memory. Only rank 2 is waited for, longer than it takes to see that rank 1 has ended."""
    one = np.ones(1, np.float32)
    child = _forked(lambda: join(1, 3, timeout_s=0.01).gather(one.ctypes.data, 0, 1, 4))
    rows, out = np.zeros(1, np.float32), np.empty(3, np.float32)
    group, last = join(0, 3, pids={1: child}), join(2, 3)
    late = threading.Timer(0.6, lambda: last.gather(rows.ctypes.data, 0, 1, 4))
    late.start()
    group.gather(rows.ctypes.data, out.ctypes.data, 1, 4)
    late.join()
    os.waitpid(child, 0)
    assert out.tolist() == [0.0, 1.0, 0.0]


def test_descriptors_go_with_the_group(join: Join) -> None:
    before = len(os.listdir("/proc/self/fd"))
    group = join(0, 2, pids={1: os.getppid()})
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del group
    assert len(os.listdir("/proc/self/fd")) == before
