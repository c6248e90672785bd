"""Memory that ranks share is found by those who see rank 0's process, and by nobody by mistake."""

import json
import mmap
import os
from pathlib import Path

import pytest

from glm_cluster.model import segment

BYTES = 1 << 16


class DictStore:
    """A store whose values are there before they are asked for."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str, /) -> None:
        self.values[key] = value

    def get(self, key: str, /) -> bytes:
        return self.values[key].encode()

    def change(self, **changes: object) -> None:
        """Make what rank 0 has said untrue."""
        ((key, value),) = self.values.items()
        self.values[key] = json.dumps(json.loads(value) | changes)


@pytest.fixture
def store() -> DictStore:
    return DictStore()


@pytest.fixture
def memory(store: DictStore) -> mmap.mmap:
    """Rank 0's."""
    memory = segment.share(store, 0, BYTES)
    assert memory is not None
    return memory


def test_what_one_writes_the_other_reads(store: DictStore, memory: mmap.mmap) -> None:
    other = segment.share(store, 1, BYTES)
    assert other is not None
    assert len(other) == BYTES
    assert not any(other[: BYTES // 2])
    other[5] = 7
    assert memory[5] == 7


def test_another_process_finds_it(store: DictStore, memory: mmap.mmap) -> None:
    child = os.fork()
    if child == 0:
        found = segment.share(store, 1, BYTES)
        if found is not None:
            found[9] = 8
        os._exit(0)
    os.waitpid(child, 0)
    assert memory[9] == 8


def test_it_has_no_name_in_a_file_system() -> None:
    before = set(Path("/dev/shm").iterdir())
    store = DictStore()
    memory = segment.share(store, 0, BYTES)
    assert memory is not None
    assert not [path for path in set(Path("/dev/shm").iterdir()) - before if "glm" in path.name]


@pytest.mark.parametrize("lie", ["pid", "fd", "secret", "bytes"])
def test_something_else_is_not_taken_for_it(store: DictStore, memory: mmap.mmap, lie: str, tmp_path: Path) -> None:
    """As in a container where the same number is another process, or the same descriptor another file."""
    with (tmp_path / "file").open("w+b") as other:
        other.truncate(BYTES)
        store.change(**{lie: {"pid": 2**22 + 1, "fd": other.fileno(), "secret": "00" * 32, "bytes": 2 * BYTES}[lie]})
        assert segment.share(store, 1, BYTES) is None


def test_another_segment_is_not_taken_for_it(store: DictStore, memory: mmap.mmap) -> None:
    other = DictStore()
    kept = segment.share(other, 0, BYTES)
    assert kept is not None
    (said,) = other.values.values()
    store.change(fd=json.loads(said)["fd"])
    assert segment.share(store, 1, BYTES) is None


def test_a_kernel_that_gives_none(store: DictStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise OSError("not here")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert segment.share(store, 0, BYTES) is None
    assert segment.share(store, 1, BYTES) is None
