"""Memory that all ranks of a group have mapped, if they can: made by rank 0, found by the others through /proc.

It has no name in any file system, so nothing is left of it when the processes end, however they end. Ranks of other
hosts, and of containers that see other processes, do not find it: what they find in its place, if anything, lacks rank
0's secret. Knows neither torch nor what is kept in the memory.
"""

import json
import mmap
import os
import secrets
from typing import Protocol

_NAME = "glm_cluster"
_KEY = "glm_cluster/segment"
_SECRET_BYTES = 32
_MAP = mmap.MAP_SHARED | mmap.MAP_POPULATE
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class Store(Protocol):
    """The part of torch's stores that ranks meet through."""

    def set(self, key: str, value: str, /) -> None:
        """Keep a value."""

    def get(self, key: str, /) -> bytes:
        """The value, as soon as somebody has set it."""


def share(store: Store, rank: int, num_bytes: int) -> mmap.mmap | None:
    """The group's memory as this rank maps it, zeros but for its end; None where there is none or out of reach."""
    return _make(store, num_bytes) if rank == 0 else _find(store)


def _make(store: Store, num_bytes: int) -> mmap.mmap | None:
    secret = secrets.token_bytes(_SECRET_BYTES)
    try:
        fd = os.memfd_create(_NAME)
        os.ftruncate(fd, num_bytes)
        memory = mmap.mmap(fd, num_bytes, flags=_MAP)
    except OSError:
        store.set(_KEY, json.dumps(None))
        return None
    memory[-_SECRET_BYTES:] = secret
    store.set(_KEY, json.dumps({"pid": os.getpid(), "fd": fd, "bytes": num_bytes, "secret": secret.hex()}))
    return memory


def _find(store: Store) -> mmap.mmap | None:
    place = json.loads(store.get(_KEY))
    if place is None:
        return None
    path = f"/proc/{place['pid']}/fd/{place['fd']}"
    try:
        if not os.readlink(path).startswith(f"/memfd:{_NAME}"):
            return None
        fd = os.open(path, _OPEN)
        try:
            memory = mmap.mmap(fd, place["bytes"], flags=_MAP)
        finally:
            os.close(fd)
    except (OSError, ValueError):  # not there, not ours to open, shorter
        return None
    return memory if memory[-_SECRET_BYTES:].hex() == place["secret"] else None
