"""The requests that one front process has open, in a file of shared memory: what a killed process leaves behind.

Knows slots of bytes and the lock that says whose they are. Refuses to know what a record means, and to hold up a
request or fail it: the file lies in memory, where a store waits for no disk, and a request without a slot has a `Slot`
all the same.
"""

import fcntl
import hashlib
import mmap
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".ledger1"  # 1: this layout
SHARED_MEMORY = Path("/dev/shm")
SLOT_BYTES = 4096
MAX_SLOTS = 4096
_CHUNK_SLOTS = 64
_CHUNK_BYTES = _CHUNK_SLOTS * SLOT_BYTES
_ATTEMPTS = 100
_FREE, _OPEN, _CLOSED = 0, 1, 2
# The cells of a slot, each an int that one store changes.
_STATE, _NUM_OPENING, _NUM_ENDING, _ENTERED, _SEEN = range(5)
_GENERATED, _DELIVERED, _CACHED, _IS_MARKED, _INODE, _OFFSET = range(5, 11)
_CELLS_BYTES = 128
_ENDING = slice(_CELLS_BYTES, 512)
_OPENING = slice(512, SLOT_BYTES)
ROOM = _OPENING.stop - _OPENING.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a slot says of a request that is not written yet."""

    opening: bytes
    ending: bytes | None  # None: it had not ended
    entered_s: float
    seen_s: float  # when it was last heard of
    num_generated: int
    num_delivered: int
    num_cached: int
    mark: tuple[int, int] | None  # its line is in this inode at this offset or later, unless its writer died first


class Slot:
    """One request's place. Whatever the instruction that its process dies at, it reads as a state that was meant.

    free -> open -> closed -> free: of a change, the store that makes it count is the last.
    """

    def __init__(self, page: memoryview, home: list["Slot"] | None = None) -> None:
        self._page = page
        self._cells = page[:_CELLS_BYTES].cast("Q")
        self._home = home

    @classmethod
    def unkept(cls) -> "Slot":
        """A slot that dies with its process."""
        return cls(memoryview(bytearray(SLOT_BYTES)))

    def open(self, opening: bytes) -> None:
        """Take the slot for a request that nothing has come of yet."""
        cells = self._cells
        self._put(_OPENING, _NUM_OPENING, opening)
        cells[_ENTERED] = cells[_SEEN] = time.time_ns()
        cells[_GENERATED] = cells[_DELIVERED] = cells[_CACHED] = cells[_IS_MARKED] = 0
        cells[_STATE] = _OPEN

    def count(self, num_generated: int, num_delivered: int, num_cached: int) -> None:
        """Note how far the request is. Called for each token, so these are stores and no more."""
        cells = self._cells
        cells[_GENERATED] = num_generated
        cells[_DELIVERED] = num_delivered
        cells[_CACHED] = num_cached
        cells[_SEEN] = time.time_ns()

    def close(self, ending: bytes) -> None:
        """Note how the request ended."""
        self._put(_ENDING, _NUM_ENDING, ending)
        self._cells[_STATE] = _CLOSED

    def mark(self, inode: int, offset: int) -> None:
        """Note where its line is about to stand."""
        self._cells[_INODE] = inode
        self._cells[_OFFSET] = offset
        self._cells[_IS_MARKED] = 1

    def free(self) -> None:
        """Have done with the request: its line stands, or it is to have none."""
        self._cells[_STATE] = _FREE
        if self._home is not None:
            self._home.append(self)

    def left(self) -> Left | None:
        """The request in here; None if it is free."""
        cells = self._cells
        if cells[_STATE] == _FREE:
            return None
        return Left(
            opening=self._get(_OPENING, _NUM_OPENING),
            ending=self._get(_ENDING, _NUM_ENDING) if cells[_STATE] == _CLOSED else None,
            entered_s=cells[_ENTERED] / 1e9,
            seen_s=cells[_SEEN] / 1e9,
            num_generated=cells[_GENERATED],
            num_delivered=cells[_DELIVERED],
            num_cached=cells[_CACHED],
            mark=(cells[_INODE], cells[_OFFSET]) if cells[_IS_MARKED] else None,
        )

    def _put(self, area: slice, num_bytes: int, text: bytes) -> None:
        self._page[area][: len(text)] = text  # raises if it does not fit
        self._cells[num_bytes] = len(text)

    def _get(self, area: slice, num_bytes: int) -> bytes:
        return bytes(self._page[area][: self._cells[num_bytes]])


class Ledger:
    """The slots of this process, in a file that it locks for as long as it lives: unlocked, it has been left behind."""

    def __init__(self, directory: Path) -> None:
        self._path, self._file = _create(directory)
        self._num_slots = 0
        self._free: list[Slot] = []  # the last is the one used last, and so in the processor's cache
        self._is_closing = False

    def enter(self, opening: bytes) -> Slot | None:
        """A slot that holds `opening`; None if there is no room for it."""
        if len(opening) > ROOM or (slot := self._free_slot()) is None:
            return None
        slot.open(opening)
        return slot

    def close(self) -> None:
        """Remove the file, unless there are requests in it for others to find."""
        self._is_closing = True
        with suppress(IndexError):
            while self._free.pop():  # nobody gets in any more
                self._num_slots -= 1
        if not self._num_slots:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            with suppress(OSError):  # somebody's is still there
                self._path.parent.rmdir()

    def _free_slot(self) -> Slot | None:
        with suppress(IndexError):
            return self._free.pop()
        if self._is_closing or self._num_slots >= MAX_SLOTS:
            return None
        try:
            self._grow()
        except OSError:  # the memory is full
            return None
        return self._free.pop()

    def _grow(self) -> None:
        start = self._num_slots * SLOT_BYTES
        if os.pwrite(self._file, bytes(_CHUNK_BYTES), start) < _CHUNK_BYTES:  # a hole would be filled by a fatal signal
            raise OSError(f"{self._path}: no room for more requests")
        slots = _slots(self._file, start, _CHUNK_SLOTS, home=self._free)
        self._num_slots += _CHUNK_SLOTS
        self._free.extend(reversed(slots))


def ledger_directory(log: Path) -> Path:
    """Where the front processes that write this log have their ledgers on this machine: a matter of its name alone.

    A link may point elsewhere tomorrow, and those who start then must still find what is left today.
    """
    if not SHARED_MEMORY.is_dir():
        return log.with_name(log.name + ".open")
    name = hashlib.sha256(os.fsencode(log.absolute())).hexdigest()[:16]
    return SHARED_MEMORY / f"usage-{os.geteuid()}-{name}"


def settle_left(directory: Path, settle: Callable[[Slot, Left], None]) -> None:
    """Have every request settled that processes which are gone have left in `directory`, then remove their ledgers.

    A slot that `settle` came back from is free. What it raises ends this for one ledger, whose other slots are for the
    next who tries, and is raised when the others have been seen to.
    """
    try:
        _check_ours(directory)
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return
    failure: OSError | None = None
    for path in [directory / name for name in names if name.endswith(SUFFIX)]:
        try:
            _settle_one(path, settle)
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure
    with suppress(OSError):  # somebody's is still there
        directory.rmdir()


def _settle_one(path: Path, settle: Callable[[Slot, Left], None]) -> None:
    with _left_behind(path) as slots:
        for slot in slots:
            if (left := slot.left()) is not None:
                settle(slot, left)
                slot.free()


@contextmanager
def _left_behind(path: Path) -> Iterator[list[Slot]]:
    """The slots of a ledger that nobody holds, which is removed at the end; none if somebody does."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield []
        return
    try:
        if not _locked(file):
            yield []
            return
        num_slots = os.fstat(file).st_size // SLOT_BYTES
        yield _slots(file, 0, num_slots) if num_slots else []
        path.unlink(missing_ok=True)
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # a map holds a duplicate of the file, and with it the lock
        os.close(file)


def _create(directory: Path) -> tuple[Path, int]:
    """A new file and the lock on it. Others may remove the directory before, and the file as one left behind."""
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError, FileExistsError):
            directory.mkdir(0o700)
        with suppress(FileNotFoundError):
            _check_ours(directory)
            path = directory / (secrets.token_hex(8) + SUFFIX)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            if _locked(file) and os.fstat(file).st_nlink:
                return path, file
            os.close(file)
    raise OSError(f"{directory}: no file that stays could be made there")


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check_ours(directory: Path) -> None:
    """Where anybody may make a directory, somebody else's is no place for what requests cost."""
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise PermissionError(f"{directory} is not this user's directory; remove it")


def _slots(file: int, start: int, count: int, home: list[Slot] | None = None) -> list[Slot]:
    page = memoryview(mmap.mmap(file, count * SLOT_BYTES, offset=start))
    return [Slot(page[at : at + SLOT_BYTES], home) for at in range(0, len(page), SLOT_BYTES)]
