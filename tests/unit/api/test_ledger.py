"""Slots that outlive their process, and whose they are."""

import fcntl
import os
import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from glm_cluster.api import ledger
from glm_cluster.api.ledger import MAX_SLOTS, ROOM, SUFFIX, Ledger, Left, Slot, ledger_directory, settle_left


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "ledgers"


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"*{SUFFIX}"))


def left_in(directory: Path) -> list[Left]:
    found: list[Left] = []
    settle_left(directory, lambda slot, left: found.append(left))
    return found


def abandon(book: Ledger) -> None:
    """What the end of its process does."""
    fcntl.flock(book._file, fcntl.LOCK_UN)


def entered(book: Ledger, text: bytes = b"text") -> Slot:
    slot = book.enter(text)
    assert slot is not None
    return slot


def test_what_was_stored_last_is_what_is_left(directory: Path):
    book = Ledger(directory)
    one, two, three = entered(book, b"one"), entered(book, b"two"), entered(book, b"three")
    one.count(2**40, 7, 5)
    two.close(b"ended")
    two.mark(11, 12)
    three.free()
    abandon(book)
    first, second = left_in(directory)
    assert (first.opening, first.ending, first.mark) == (b"one", None, None)
    assert (first.num_generated, first.num_delivered, first.num_cached) == (2**40, 7, 5)
    assert (second.opening, second.ending, second.mark) == (b"two", b"ended", (11, 12))
    assert first.entered_s <= second.entered_s <= first.seen_s
    assert not files(directory)


def test_a_slot_is_used_again_and_says_nothing_of_before(directory: Path):
    book = Ledger(directory)
    slot = entered(book, b"a longer text")
    slot.count(3, 2, 1)
    slot.close(b"ended")
    slot.mark(1, 2)
    slot.free()
    while entered(book, b"two") is not slot:
        pass
    abandon(book)
    assert {left.opening for left in left_in(directory)} == {b"two"}
    assert slot.left() is None


def test_a_reused_slot_starts_from_nothing():
    slot = Slot.unkept()
    slot.open(b"one")
    slot.count(3, 2, 1)
    slot.close(b"ended")
    slot.mark(1, 2)
    slot.free()
    slot.open(b"two")
    left = slot.left()
    assert left is not None
    assert (left.num_generated, left.num_delivered, left.num_cached) == (0, 0, 0)
    assert (left.opening, left.ending, left.mark) == (b"two", None, None)


def test_what_is_held_is_nobody_else_s(directory: Path):
    book = Ledger(directory)
    entered(book)
    assert left_in(directory) == []
    assert len(files(directory)) == 1


def test_a_ledger_without_requests_goes_with_its_process(directory: Path):
    books = [Ledger(directory) for _ in range(2)]
    entered(books[0]).free()
    books[0].close()
    assert len(files(directory)) == 1
    books[1].close()
    assert not directory.exists()


def test_a_ledger_with_requests_stays_and_takes_no_more(directory: Path):
    book = Ledger(directory)
    entered(book)
    book.close()
    assert book.enter(b"late") is None
    abandon(book)
    assert [left.opening for left in left_in(directory)] == [b"text"]


def test_it_grows_until_there_are_too_many(directory: Path):
    book = Ledger(directory)
    taken = [entered(book, b"%d" % index) for index in range(MAX_SLOTS)]
    assert book.enter(b"one too many") is None
    taken[5].free()
    assert book.enter(b"again") is taken[5]
    abandon(book)
    assert {left.opening for left in left_in(directory)} == {b"%d" % i for i in range(MAX_SLOTS)} - {b"5"} | {b"again"}


def test_full_memory_is_no_error(directory: Path, monkeypatch: pytest.MonkeyPatch):
    """Storing to a page that the file system has no room for would kill the process: it must be asked for before."""
    book = Ledger(directory)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda file, data, offset: len(data) - 1)
        assert book.enter(b"text") is None
    entered(book)
    abandon(book)
    assert len(left_in(directory)) == 1


def test_what_does_not_fit_has_no_slot(directory: Path):
    book = Ledger(directory)
    entered(book, b"x" * ROOM)
    assert book.enter(b"x" * (ROOM + 1)) is None


def test_an_error_leaves_the_rest_for_the_next(directory: Path):
    book = Ledger(directory)
    for text in (b"one", b"two", b"three"):
        entered(book, text)
    abandon(book)

    def fail(slot: Slot, left: Left) -> None:
        if left.opening == b"two":
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        settle_left(directory, fail)
    assert [left.opening for left in left_in(directory)] == [b"two", b"three"]


def test_a_file_cut_short_is_no_error(directory: Path):
    directory.mkdir(mode=0o700)
    (directory / f"empty{SUFFIX}").touch()
    (directory / f"short{SUFFIX}").write_bytes(bytes(100))
    (directory / "other").touch()
    assert left_in(directory) == []
    assert [path.name for path in directory.iterdir()] == ["other"]


def test_a_file_removed_before_its_lock_was_had_is_made_anew(directory: Path, monkeypatch: pytest.MonkeyPatch):
    """Between making a file and locking it another process takes it for one that was left, and removes it."""
    locked, robbed = ledger._locked, []

    def rob(file: int) -> bool:
        if not robbed:
            robbed.append(files(directory)[0])
            robbed[0].unlink()
        return locked(file)

    monkeypatch.setattr(ledger, "_locked", rob)
    Ledger(directory)
    assert robbed
    assert len(files(directory)) == 1


def test_a_directory_removed_before_its_first_file_is_made_anew(directory: Path, monkeypatch: pytest.MonkeyPatch):
    """The last one to leave removes it."""
    token_hex, robbed = secrets.token_hex, []

    def rob(num_bytes: int) -> str:
        if not robbed:
            robbed.append(directory.rmdir())
        return token_hex(num_bytes)

    monkeypatch.setattr(secrets, "token_hex", rob)
    Ledger(directory)
    assert robbed
    assert len(files(directory)) == 1


def test_a_place_where_nothing_can_be_made_is_an_error(tmp_path: Path):
    with pytest.raises(OSError, match="no file that stays"):
        Ledger(tmp_path / "no" / "ledgers")


def test_those_who_come_and_go_do_not_meet(directory: Path):
    """Many at once make their ledgers, inherit and leave, which removes what another is about to use."""

    def come_and_go(index: int) -> None:
        book = Ledger(directory)
        entered(book).free()
        assert left_in(directory) == []
        book.close()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(come_and_go, range(200))) == [None] * 200
    assert not directory.exists()


def test_another_user_s_directory_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch):
    directory.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: directory.stat().st_uid + 1)
    for use in (Ledger, left_in):
        with pytest.raises(PermissionError, match="remove it"):
            use(directory)


def test_a_link_is_refused(directory: Path, tmp_path: Path):
    directory.symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        Ledger(directory)


def test_a_log_s_ledgers_are_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert ledger_directory(Path("usage")) == ledger_directory(tmp_path / "usage") != ledger_directory(tmp_path / "u")
    before = ledger_directory(tmp_path / "link")
    (tmp_path / "link").symlink_to(tmp_path / "usage")
    assert ledger_directory(tmp_path / "link") == before
    monkeypatch.setattr(ledger, "SHARED_MEMORY", tmp_path / "none")
    assert ledger_directory(tmp_path / "usage") == tmp_path / "usage.open"


def test_a_program_that_a_front_starts_does_not_hold_its_ledger(directory: Path):
    book = Ledger(directory)
    entered(book)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        abandon(book)
        assert len(left_in(directory)) == 1
    finally:
        child.communicate(b"\n")


def test_an_inode_may_have_any_number():
    slot = Slot.unkept()
    slot.open(b"a")
    slot.mark(2**64 - 1, 7)
    left = slot.left()
    assert left is not None
    assert left.mark == (2**64 - 1, 7)


def test_an_error_in_one_ledger_holds_up_no_other(directory: Path):
    for text in (b"a", b"b", b"c"):
        book = Ledger(directory)
        assert book.enter(text) is not None
        fcntl.flock(book._file, fcntl.LOCK_UN)
    settled = []

    def settle(slot: Slot, left: Left) -> None:
        if not settled:
            settled.append(b"")
            raise OSError("this one cannot be written")
        settled.append(left.opening)

    with pytest.raises(OSError, match="this one"):
        settle_left(directory, settle)
    assert len(settled) == 3
    settle_left(directory, settle)
    assert sorted(settled) == [b"", b"a", b"b", b"c"]
