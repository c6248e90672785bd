"""Exactly one usage record for an admitted request, with the tokens its client got, wherever it breaks."""

import asyncio
import json
import os
import queue
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import asdict, fields
from pathlib import Path
from unittest.mock import Mock

import httpx
import pytest

from glm_cluster.api.access import Access
from glm_cluster.api.callers import Caller
from glm_cluster.api.http import build_http_app
from glm_cluster.api.ledger import Slot
from glm_cluster.api.line_file import LineFile
from glm_cluster.api.service import Delta, Usage
from glm_cluster.api.usage_log import UsageLog
from glm_cluster.api.usage_record import UsageRecord
from glm_cluster.config import Limits
from glm_cluster.errors import EngineUnavailable, InvalidRequest, Overloaded
from glm_cluster.metrics import NoMeters

NUM_DELTAS = 4


def record(**changes) -> UsageRecord:
    values = {field.name: "x" for field in fields(UsageRecord)} | changes
    return UsageRecord(**values)


class Shelf:
    """Keeps records in place of a file, and the slots that were to outlive them."""

    def __init__(self) -> None:
        self.records: list[UsageRecord] = []
        self.entered: list[tuple[UsageRecord, Slot]] = []

    def enter(self, record: UsageRecord) -> Slot:
        slot = Slot.unkept()
        slot.open(record.line())
        self.entered.append((record, slot))
        return slot

    def put(self, record: UsageRecord, slot: Slot) -> None:
        assert [slot] == [entered for _, entered in self.entered]
        self.records.append(record)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def access(shelf: Shelf) -> Access:
    return Access(meters=NoMeters(), usage_log=shelf)


async def deltas(fail_at: int | None, error: BaseException) -> AsyncGenerator[Delta, None]:
    for index in range(NUM_DELTAS):
        if index == fail_at:
            raise error
        last = index == NUM_DELTAS - 1
        usage = Usage(num_prompt_tokens=5, num_output_tokens=2 * NUM_DELTAS, num_cached_tokens=3) if last else None
        yield Delta("ab", (1, 2), "length" if last else None, usage)


FAULTS = [EngineUnavailable("gone"), asyncio.CancelledError(), ZeroDivisionError(), GeneratorExit()]


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["engine", "client"])
@pytest.mark.parametrize("at", range(NUM_DELTAS + 1))
async def test_one_record_wherever_a_stream_breaks(
    at: int, place: str, error: BaseException, access: Access, shelf: Shelf
):
    """At delta `at` the engine or the sending fails; at one that does not come, nothing does."""
    got = 0
    try:
        with access.request("http", "chat", Caller.unknown()) as account:
            account.admit(model="m", num_prompt_tokens=5, max_tokens=2 * NUM_DELTAS, user="u")
            source = deltas(at if place == "engine" else None, error)
            async with aclosing(source), aclosing(account.metered(source, streamed=True)) as metered:
                index = 0
                async for delta in metered:
                    if place == "client" and index == at:
                        raise error
                    got += len(delta.token_ids)
                    index += 1
    except BaseException:
        assert at < NUM_DELTAS
    (written,) = shelf.records
    assert (written.prompt_tokens, written.completion_tokens, written.user) == (5, got, "u")
    status = getattr(error, "code", None)
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        status = "cancelled"
    assert written.status == ("ok" if at == NUM_DELTAS else status or "internal_error")
    assert written.generated_tokens == got + (2 if place == "client" and at < NUM_DELTAS else 0)
    assert written.finish == ("length" if at == NUM_DELTAS or (place, at) == ("client", NUM_DELTAS - 1) else None)


@pytest.mark.parametrize("sent", [True, False])
async def test_a_whole_answer_counts_once_it_is_sent(sent: bool, access: Access, shelf: Shelf):
    with access.request("http", "chat", Caller.unknown()) as account:
        account.admit(model="m", num_prompt_tokens=5, max_tokens=9)
        async for _ in account.metered(deltas(None, ValueError()), streamed=False):
            pass
        if sent:
            account.delivered()
    (written,) = shelf.records
    assert (written.completion_tokens, written.generated_tokens) == (8 if sent else 0, 8)
    assert written.cached_tokens == 3


def test_what_is_refused_before_it_is_admitted_leaves_none(access: Access, shelf: Shelf):
    with pytest.raises(InvalidRequest), access.request("http", "chat", Caller.unknown()):
        raise InvalidRequest("no")
    assert shelf.records == []


def test_what_is_refused_after_that_leaves_one(access: Access, shelf: Shelf):
    def run() -> None:
        with access.request("http", "chat", Caller.unknown()) as account:
            account.admit(model="m", num_prompt_tokens=5, max_tokens=9)
            raise Overloaded("full")

    with pytest.raises(Overloaded):
        run()
    assert [(one.status, one.completion_tokens) for one in shelf.records] == [("overloaded", 0)]


@pytest.fixture
async def client(service, server, tally, access: Access) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build_http_app(service, server, tally, access))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_and_its_record_have_the_same_id(stream: bool, client: httpx.AsyncClient, shelf: Shelf):
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 5, "stream": stream}
    response = await client.post("/v1/completions", json=body, headers={"x-client-request-id": "mine"})
    text = response.text.split("\n")[0].removeprefix("data: ")
    (written,) = shelf.records
    assert json.loads(text)["id"] == "cmpl-" + written.request_id
    assert response.headers["x-request-id"] == written.request_id
    assert response.headers["x-client-request-id"] == written.client_request_id == "mine"
    assert (written.prompt_tokens, written.cached_tokens, written.completion_tokens) == (3, 1, 5)
    assert (written.status, written.finish, written.route, written.wire) == ("ok", "length", "completions", "http")


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_s_error_is_recorded_with_what_had_gone_out(
    stream: bool, client: httpx.AsyncClient, echo, shelf: Shelf
):
    echo.error = EngineUnavailable("gone")
    await client.post("/v1/completions", json={"model": "tiny", "prompt": "ab~", "stream": stream})
    (written,) = shelf.records
    assert (written.status, written.finish) == ("engine_unavailable", None)
    assert (written.completion_tokens, written.generated_tokens) == (2 if stream else 0, 2)


@pytest.mark.parametrize("stream", [True, False])
async def test_choices_are_recorded_together(stream: bool, client: httpx.AsyncClient, shelf: Shelf):
    body = {"model": "tiny", "prompt": ["abc", "de"], "n": 3, "max_tokens": 5, "stream": stream, "user": "u-1"}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    (written,) = shelf.records
    assert (written.prompt_tokens, written.completion_tokens, written.user) == (5, 30, "u-1")


async def test_more_choices_than_the_setting_are_refused(service, server, tally):
    access = Access(meters=tally, limits=Limits(max_choices=3))
    transport = httpx.ASGITransport(build_http_app(service, server, tally, access))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        body = {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 1}
        found = [(await client.post("/v1/completions", json=body | {"n": n})) for n in (1, 2)]
    assert [response.status_code for response in found] == [200, 400]
    assert found[1].json()["error"]["param"] == "n"


async def test_numbers_are_recorded_too(client: httpx.AsyncClient, shelf: Shelf):
    await client.post("/v1/embeddings", json={"model": "mapper", "input": ["ab", "c"], "user": "u-2"})
    (written,) = shelf.records
    assert (written.prompt_tokens, written.completion_tokens, written.finish, written.model) == (7, 0, "stop", "mapper")
    assert written.user == "u-2"


@pytest.fixture
def ledgers(tmp_path: Path) -> Path:
    return tmp_path / "ledgers"


def write(log: UsageLog, one: UsageRecord) -> None:
    log.put(one, log.enter(one))


def test_lines_are_written_in_order_and_a_moved_file_is_made_anew(tmp_path: Path, ledgers: Path, tally):
    path = tmp_path / "usage"
    for round_ in range(2):
        log = UsageLog(path, tally, directory=ledgers)
        for index in range(20):
            write(log, record(prompt_tokens=index))
        log.close()
        assert [json.loads(line)["prompt_tokens"] for line in path.read_text().splitlines()] == list(range(20))
        path.rename(tmp_path / f"old{round_}")


def test_two_logs_share_a_file(tmp_path: Path, ledgers: Path, tally):
    logs = [UsageLog(tmp_path / "usage", tally, directory=ledgers) for _ in range(2)]
    for _ in range(50):
        for log in logs:
            write(log, record())
    for log in logs:
        log.close()
    assert len([json.loads(line) for line in (tmp_path / "usage").read_text().splitlines()]) == 100


def lost(tally) -> float:
    return sum(value for name, value, _ in tally.counted if name == "glm_usage_records_lost_total")


def test_a_log_that_cannot_be_written_is_counted(tmp_path: Path, ledgers: Path, tally):
    log = UsageLog(tmp_path / "no" / "usage", tally, directory=ledgers)
    write(log, record())
    log.close()
    assert lost(tally) == 1


def test_a_defect_in_writing_loses_one_record(tmp_path: Path, ledgers: Path, tally, monkeypatch: pytest.MonkeyPatch):
    def fail(file: LineFile, line: bytes, before: object) -> None:
        if b'"bad"' in line:
            raise ValueError("a defect")
        append(file, line, before)

    append = LineFile.append
    monkeypatch.setattr(LineFile, "append", fail)
    log = UsageLog(tmp_path / "usage", tally, directory=ledgers)
    for name in ("bad", "good"):
        write(log, record(request_id=name))
    log.close()
    assert [json.loads(line)["request_id"] for line in (tmp_path / "usage").read_text().splitlines()] == ["good"]
    assert [name for name, _, _ in tally.counted] == ["glm_usage_records_lost_total"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
def test_a_full_disk_is_counted(ledgers: Path, tally):
    log = UsageLog(Path("/dev/full"), tally, directory=ledgers)
    write(log, record())
    write(log, record())
    log.close()
    assert lost(tally) == 2


def test_a_torn_line_does_not_spoil_the_next(tmp_path: Path, ledgers: Path, tally, monkeypatch: pytest.MonkeyPatch):
    path, os_write = tmp_path / "usage", os.write
    rooms = [10, 10_000]
    monkeypatch.setattr(os, "write", lambda file, line: os_write(file, line[: rooms.pop(0)]))
    log = UsageLog(path, tally, directory=ledgers)
    write(log, record(model="first"))
    write(log, record(model="second"))
    log.close()
    assert json.loads(path.read_text().splitlines()[1])["model"] == "second"
    assert lost(tally) == 1


def unkept(tally) -> float:
    return sum(value for name, value, _ in tally.counted if name == "glm_usage_records_unkept_total")


def test_without_a_ledger_records_are_written_all_the_same(
    tmp_path: Path, ledgers: Path, tally, caplog: pytest.LogCaptureFixture
):
    ledgers.touch()
    log = UsageLog(tmp_path / "usage", tally, directory=ledgers)
    write(log, record())
    log.close()
    assert len((tmp_path / "usage").read_text().splitlines()) == 1
    assert (lost(tally), unkept(tally)) == (0, 1)
    assert "lost if this process is killed" in caplog.text


def test_a_user_whose_name_has_no_room_is_left_out_of_what_is_kept(tmp_path: Path, ledgers: Path, tally):
    """512 characters may be 6 KiB of JSON. In the log they stand in full, unless the process is killed before."""
    log = UsageLog(tmp_path / "usage", tally, directory=ledgers)
    one = record(user="\N{GRINNING FACE}" * 512)
    slot = log.enter(one)
    left = slot.left()
    assert left is not None
    assert json.loads(left.opening) == asdict(one) | {"user": None}
    log.put(one, slot)
    log.close()
    assert json.loads((tmp_path / "usage").read_text())["user"] == one.user
    assert unkept(tally) == 0


def test_what_does_not_fit_the_queue_is_lost_and_not_left(
    tmp_path: Path, ledgers: Path, tally, monkeypatch: pytest.MonkeyPatch
):
    log = UsageLog(tmp_path / "usage", tally, directory=ledgers)
    with monkeypatch.context() as patch:
        patch.setattr(log._pending, "put_nowait", Mock(side_effect=queue.Full))
        write(log, record())
    log.close()
    assert lost(tally) == 1
    assert not ledgers.exists()


async def test_a_request_s_slot_follows_it(access: Access, shelf: Shelf):
    """What would be recorded if the process died is what is recorded, as far as it is known."""
    with access.request("http", "chat", Caller.unknown()) as account:
        account.admit(model="m", num_prompt_tokens=5, max_tokens=9, user="u")
        ((opening, slot),) = shelf.entered
        assert (opening.status, opening.prompt_tokens, opening.user, opening.finish) == ("front_died", 5, "u", None)
        seen = []
        async for _ in account.metered(deltas(None, ValueError()), streamed=True):
            left = slot.left()
            assert left is not None
            seen.append((left.num_generated, left.num_delivered, left.num_cached))
    assert seen == [(2, 0, 0), (4, 2, 0), (6, 4, 0), (8, 6, 3)]
    left = slot.left()
    assert left is not None
    assert (left.num_generated, left.num_delivered, left.num_cached) == (8, 8, 3)


async def test_a_whole_answer_is_noted_once_it_is_sent(access: Access, shelf: Shelf):
    with access.request("http", "chat", Caller.unknown()) as account:
        account.admit(model="m", num_prompt_tokens=5, max_tokens=9)
        async for _ in account.metered(deltas(None, ValueError()), streamed=False):
            pass
        ((_, slot),) = shelf.entered
        before = slot.left()
        account.delivered()
    after = slot.left()
    assert before is not None
    assert after is not None
    assert (before.num_delivered, after.num_delivered) == (0, 8)
