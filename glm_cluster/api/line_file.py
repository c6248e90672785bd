"""A file of lines that several processes append to, each line by one write.

Knows bytes, and how to tell whether one of a line's writers got it done before it was killed. Refuses to know what a
line says, and to be held up by the other writers: nobody locks the file.
"""

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_MODE = 0o600
_SETTLE_S = 0.001  # a write takes microseconds; a file that still ends within a line after this was left so


class LineFile:
    """The file at `path`, opened for each line: it may have been moved away, or the disk mounted anew."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: bytes, before: Callable[[int, int], None]) -> None:
        """Write a whole line or raise OSError. `before` hears in which inode it will be, and from which offset on."""
        with _opened(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
            line = b"\n" + line if self._ends_within_line(file) else line
            status = os.fstat(file)
            before(status.st_ino, status.st_size)
            if (written := os.write(file, line)) < len(line):
                raise OSError(f"{self.path}: {written} of {len(line)} bytes could be written")

    def holds(self, inode: int, offset: int, is_it: Callable[[bytes], bool]) -> bool:
        """Whether a whole line stands at `offset` or later of the file `inode`: this one, or moved to beside it.

        If there is no such file, this may be a copy of it, and is read from its beginning. Of what cannot be read it is
        taken to hold the line: nobody is to be charged twice.
        """
        named = [Path(entry.path) for entry in os.scandir(self.path.parent) if entry.inode() == inode]
        if not named and not self.path.exists():
            return False
        path, start = (named[0], offset) if named else (self.path, 0)
        try:
            return not path.is_file() or any(is_it(line) for line in _lines_from(path, start))
        except PermissionError:
            return True

    def _ends_within_line(self, file: int) -> bool:
        """Whether somebody's write, maybe of a process that is gone, ended too early. One in progress is waited for."""
        for patience_s in (_SETTLE_S, 0):
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or not status.st_size or self._last_byte(status.st_size) == b"\n":
                return False
            time.sleep(patience_s)
        return True

    def _last_byte(self, size: int) -> bytes:
        try:
            with _opened(self.path, os.O_RDONLY) as file:
                return os.pread(file, 1, size - 1) or b"\n"
        except (PermissionError, FileNotFoundError):  # who may only append, or comes as it is moved, trusts the others
            return b"\n"


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags | os.O_CLOEXEC, _MODE)
    try:
        yield file
    finally:
        os.close(file)


def _lines_from(path: Path, offset: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset if offset <= path.stat().st_size else 0)
        yield from (line for line in file if line.endswith(b"\n"))
