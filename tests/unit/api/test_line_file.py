"""Lines that several processes append to one file."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from glm_cluster.api.line_file import LineFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines"


def nowhere(inode: int, offset: int) -> None:
    """Nobody wants to know."""


def places(file: LineFile, *lines: bytes) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for line in lines:
        file.append(line, lambda *place: found.append(place))
    return found


def test_a_line_stands_where_it_was_said_to(path: Path):
    (_, first), (inode, second) = places(LineFile(path), b"one\n", b"two\n")
    assert (first, second, inode) == (0, 4, path.stat().st_ino)
    assert path.read_bytes() == b"one\ntwo\n"
    assert path.stat().st_mode & 0o777 == 0o600


def is_line(wanted: bytes) -> Callable[[bytes], bool]:
    return lambda line: line == wanted


def test_only_a_whole_line_from_there_on_is_found(path: Path):
    file = LineFile(path)
    (_, (inode, offset)) = places(file, b"one\n", b"two\n")
    assert file.holds(inode, offset, is_line(b"two\n"))
    assert not file.holds(inode, offset, is_line(b"one\n"))
    path.write_bytes(b"one\ntwo")
    assert not file.holds(inode, offset, lambda line: True)


def test_a_line_is_found_after_the_file_was_moved_away(path: Path):
    file = LineFile(path)
    (place,) = places(file, b"one\n")
    path.rename(path.with_name("old"))
    assert file.holds(*place, is_line(b"one\n"))
    places(file, b"two\n")
    assert file.holds(*place, is_line(b"one\n"))
    path.with_name("old").unlink()
    assert not file.holds(*place, is_line(b"one\n"))


def test_a_copy_of_the_file_is_read_from_its_beginning(path: Path):
    (_, place) = places(LineFile(path), b"one\n", b"two\n")
    shutil.copy(path, path.with_name("copy"))
    path.unlink()
    path.with_name("copy").rename(path)
    assert LineFile(path).holds(*place, is_line(b"one\n"))


def test_a_file_cut_short_is_read_from_its_beginning(path: Path):
    file = LineFile(path)
    (_, place) = places(file, b"a long line\n", b"two\n")
    path.write_bytes(b"two\n")
    assert file.holds(*place, is_line(b"two\n"))


def test_a_line_another_process_left_torn_is_ended_first(path: Path):
    """A process killed while the disk is slow may have written the part of its line that was on one page."""
    path.write_bytes(b"who")
    LineFile(path).append(b"two\n", nowhere)
    assert path.read_bytes() == b"who\ntwo\n"


def test_a_line_in_the_midst_of_being_written_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch):
    path.write_bytes(b"who")

    def goes_on(seconds: float) -> None:
        with path.open("ab") as other:
            other.write(b"le\n")

    monkeypatch.setattr("time.sleep", goes_on)
    LineFile(path).append(b"two\n", nowhere)
    assert path.read_bytes() == b"whole\ntwo\n"


def test_who_may_not_read_the_file_appends_to_it(path: Path, monkeypatch: pytest.MonkeyPatch):
    path.write_bytes(b"one\n")
    opened = os.open

    def may_not_read(path: Path, flags: int, mode: int) -> int:
        if flags & os.O_WRONLY:
            return opened(path, flags, mode)
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", may_not_read)
        LineFile(path).append(b"two\n", nowhere)
    assert path.read_bytes() == b"one\ntwo\n"


def test_of_a_file_that_cannot_be_read_nothing_is_written_twice(path: Path, monkeypatch: pytest.MonkeyPatch):
    path.write_bytes(b"one\n")

    def may_not(*given: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "open", may_not)
    assert LineFile(path).holds(path.stat().st_ino, 0, lambda line: False)


def test_a_pipe_is_not_read(path: Path):
    os.mkfifo(path)
    assert LineFile(path).holds(path.stat().st_ino, 0, lambda line: False)


def test_half_a_line_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:2]))
    with pytest.raises(OSError, match="2 of 4 bytes"):
        LineFile(path).append(b"one\n", nowhere)
