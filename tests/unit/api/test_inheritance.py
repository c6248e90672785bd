"""Every admitted request has exactly one record, whatever the instruction that a front process or its heir dies at."""

import fcntl
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from support import ledger_victim
from support.ledger_victim import record

from glm_cluster.api import ledger
from glm_cluster.api.inheritance import inherit, inherit_all
from glm_cluster.api.ledger import SLOT_BYTES, Ledger, ledger_directory
from glm_cluster.api.line_file import LineFile
from glm_cluster.api.usage_log import UsageLog


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def victims(role: str, directory: Path, step: int) -> Iterator[Path]:
    """Where processes died, each one point later than the one before."""
    subprocess.run([sys.executable, ledger_victim.__file__, role, directory, str(step)], check=True)
    point = 1
    while (place := directory / str(point)).exists():
        yield place
        point += 1


def all_inherited(place: Path, tally) -> list[dict[str, Any]]:
    """The log once nothing is left."""
    inherit(place / "ledgers", LineFile(place / "usage"), tally)
    assert not list((place / "ledgers").glob("*")) if (place / "ledgers").exists() else True
    assert tally.counted == []
    return lines(place / "usage")


@pytest.mark.parametrize("step", [1, 41])
def test_one_record_wherever_a_process_is_killed(step: int, tmp_path: Path, tally):
    """Its tokens are those that went out, or also those that were going out just then."""
    statuses = set()
    for place in victims("log", tmp_path, step):
        said = [line.split() for line in (place / "said").read_text().splitlines()]
        asked, entered = ({words[1] for words in said if words[0] == what} for what in ("asks", "enters"))
        found = all_inherited(place, tally)
        ids = [one["request_id"].removeprefix("id-") for one in found]
        assert len(ids) == len(set(ids))
        assert entered <= set(ids) <= asked
        for index, one in zip(ids, found, strict=True):
            gave, gives = (
                max([int(words[2]) for words in said if words[:2] == [what, index]], default=0)
                for what in ("gave", "gives")
            )
            assert gave <= one["completion_tokens"] <= gives
            assert one["completion_tokens"] <= one["generated_tokens"]
            statuses.add(one["status"])
    assert statuses == {"front_died", "ok"}


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a process leaves that had a request open, one ended, one about to be written, and one just written."""
    monkeypatch.setattr(ledger, "_CHUNK_SLOTS", 4)
    monkeypatch.setattr(ledger, "_CHUNK_BYTES", 4 * SLOT_BYTES)
    place = tmp_path / "left"
    place.mkdir()
    book, file = Ledger(place / "ledgers"), LineFile(place / "usage")
    for index, (written, marked, closed) in enumerate([(0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1)]):
        one = record(f"id-{index}", status="ok")
        slot = book.enter(one.line())
        assert slot is not None
        slot.count(7, 5, 3)
        if closed:
            slot.close(one.ending())
        if marked:
            slot.mark(0, 0)
        if written:
            file.append(one.line(), slot.mark)
    fcntl.flock(book._file, fcntl.LOCK_UN)
    return place


@pytest.mark.parametrize("step", [1, 41])
def test_one_record_wherever_an_heir_is_killed(step: int, left: Path, tally):
    for place in victims("heir", left.parent, step):
        assert sorted(one["request_id"] for one in all_inherited(place, tally)) == [f"id-{n}" for n in range(4)]


def test_two_heirs_at_once_write_no_record_twice(left: Path, tally):
    for _ in range(20):
        place = left.parent / "copy"
        shutil.copytree(left, place)
        with ThreadPoolExecutor(4) as pool:
            heirs = [pool.submit(inherit, place / "ledgers", LineFile(place / "usage"), tally) for _ in range(4)]
        assert [heir.result() for heir in heirs] == [None] * 4
        assert sorted(one["request_id"] for one in all_inherited(place, tally)) == [f"id-{n}" for n in range(4)]
        shutil.rmtree(place)


def test_a_request_that_had_not_ended_is_recorded_as_far_as_it_got(tmp_path: Path, tally):
    place = tmp_path / "ledgers"
    book = Ledger(place)
    slot = book.enter(record("r", status="front_died", time="2000").line())
    assert slot is not None
    slot.count(7, 5, 3)
    fcntl.flock(book._file, fcntl.LOCK_UN)
    inherit(place, LineFile(tmp_path / "usage"), tally)
    (one,) = lines(tmp_path / "usage")
    assert (one["generated_tokens"], one["completion_tokens"], one["cached_tokens"]) == (7, 5, 3)
    assert (one["status"], one["model"]) == ("front_died", "x")
    assert one["time"] > "2020"
    assert one["duration_s"] >= 0.25, "it had taken that long when it was admitted"


def abandoned(directory: Path, *openings: bytes) -> None:
    book = Ledger(directory)
    for opening in openings:
        assert book.enter(opening) is not None
    fcntl.flock(book._file, fcntl.LOCK_UN)


def test_a_log_that_cannot_be_written_leaves_them_where_they_are(tmp_path: Path, tally):
    ledgers = tmp_path / "ledgers"
    abandoned(ledgers, record("a").line(), record("b").line())
    with pytest.raises(FileNotFoundError):
        inherit(ledgers, LineFile(tmp_path / "no" / "usage"), tally)
    inherit(ledgers, LineFile(tmp_path / "usage"), tally)
    assert [one["request_id"] for one in lines(tmp_path / "usage")] == ["a", "b"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"request_id": "r"}'])
def test_what_cannot_be_read_is_counted_and_harms_no_other(text: bytes, tmp_path: Path, tally):
    abandoned(tmp_path / "ledgers", text, record("b").line())
    inherit(tmp_path / "ledgers", LineFile(tmp_path / "usage"), tally)
    assert [one["request_id"] for one in lines(tmp_path / "usage")] == ["b"]
    assert [name for name, _, _ in tally.counted] == ["glm_usage_records_lost_total"]


def test_a_living_log_inherits_from_a_dead_one(tmp_path: Path, tally):
    abandoned(tmp_path / "ledgers", record("a").line())
    log = UsageLog(tmp_path / "usage", tally, directory=tmp_path / "ledgers")
    log.close()
    assert [one["request_id"] for one in lines(tmp_path / "usage")] == ["a"]
    assert not (tmp_path / "ledgers").exists()


def test_a_defect_in_inheriting_does_not_end_the_writing(
    tmp_path: Path, tally, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("glm_cluster.api.usage_log.inherit", Mock(side_effect=ZeroDivisionError("a defect")))
    log = UsageLog(tmp_path / "usage", tally, directory=tmp_path / "ledgers")
    log.put(record("a", status="ok"), log.enter(record("a")))
    log.close()
    assert [one["request_id"] for one in lines(tmp_path / "usage")] == ["a"]
    assert "a defect" in caplog.text


def test_a_busy_log_inherits_too(tmp_path: Path, tally, monkeypatch: pytest.MonkeyPatch):
    """It looks again every few seconds, whether or not its own queue ever runs dry."""
    monkeypatch.setattr("glm_cluster.api.usage_log._INHERIT_S", 0.0)
    log = UsageLog(tmp_path / "usage", tally, directory=tmp_path / "ledgers")
    monkeypatch.setattr("glm_cluster.api.usage_log._INHERIT_S", 0.001)
    abandoned(tmp_path / "ledgers", record("a").line())
    deadline = time.monotonic() + 60
    while not lines(tmp_path / "usage"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    log.close()


def test_a_cluster_that_has_ended_leaves_nothing(tmp_path: Path):
    path = tmp_path / "usage"
    abandoned(ledger_directory(path), record("a").line())
    inherit_all(path)
    inherit_all(path)
    assert [one["request_id"] for one in lines(path)] == ["a"]
    assert not ledger_directory(path).exists()


def test_the_longest_record_fits_but_for_a_hostile_user(tmp_path: Path):
    """A user's name of 512 characters, however they are written, and an ending of the longest words."""
    longest = {"key": "k" * 64, "client_request_id": "c" * 128, "model": "m" * 200, "request_id": "r" * 24}
    book = Ledger(tmp_path / "ledgers")
    counts = dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens", "generated_tokens"), 2**63 - 1)
    one = record(
        **longest, user="u" * 512, finish="tool_calls", status="engine_unavailable", duration_s=1e9 / 7, **counts
    )
    slot = book.enter(one.line())
    assert slot is not None
    slot.close(one.ending())
    book.close()
