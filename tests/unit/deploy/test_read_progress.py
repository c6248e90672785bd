"""What ranks tell of their loading, and that nobody waits for anybody because of it."""

from collections.abc import Iterator

import pytest
import zmq

from glm_cluster.deploy import read_progress
from glm_cluster.deploy.channel import BytesRead, ReturnAddress, Seal
from glm_cluster.deploy.read_progress import ReadListener, ReadReporter, ReadTally

Shown = list[tuple[int, int]]


@pytest.fixture
def shown() -> Shown:
    return []


@pytest.fixture
def listener(shown: Shown) -> Iterator[ReadListener]:
    with ReadListener.open(2, lambda *done_of: shown.append(done_of)) as listener:
        yield listener


def wait_until(listener: ReadListener, shown: Shown, last: tuple[int, int]) -> None:
    for _ in range(200):
        listener.wait(0.05)
        if shown and shown[-1] == last:
            return
    raise AssertionError(f"{shown} does not end in {last}")


def test_ranks_are_summed_to_the_last_byte(listener: ReadListener, shown: Shown, context: zmq.Context) -> None:
    for rank in ("a", "b"):
        with ReadReporter(context, listener.address, rank) as on_read:
            for done in range(0, 101, 10):
                on_read(done, 100)
    wait_until(listener, shown, (200, 200))
    assert shown == sorted(shown)
    assert {total for _, total in shown} == {200}


def test_a_rank_speaks_now_and_then_but_tells_the_end(
    listener: ReadListener, shown: Shown, context: zmq.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_progress, "_PERIOD_S", 3600.0)
    with ReadReporter(context, listener.address, "a") as on_read:
        for done in range(101):
            on_read(done, 100)
    wait_until(listener, shown, (100, 200))
    assert shown == [(0, 200), (100, 200)]


def test_a_strangers_message_is_passed_over(listener: ReadListener, shown: Shown, context: zmq.Context) -> None:
    forged = ReturnAddress(listener.address.endpoint, Seal.new().key)
    with ReadReporter(context, forged, "x") as on_read:
        on_read(1, 1)
    with ReadReporter(context, listener.address, "a") as on_read:
        on_read(5, 5)
    wait_until(listener, shown, (5, 10))
    listener.wait(0.1)
    assert shown == [(5, 10)]


@pytest.mark.parametrize("address", [None, ReturnAddress("tcp://127.0.0.1:9", b"key")], ids=["none", "gone"])
def test_loading_goes_on_with_nobody_there(
    address: ReturnAddress | None, context: zmq.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_progress, "_PERIOD_S", 0.0)
    with ReadReporter(context, address, "a") as on_read:
        for done in range(5000):  # more than zmq keeps for a listener to come
            on_read(done, 5000)


def test_a_rank_not_heard_of_counts_like_the_others() -> None:
    """Otherwise the first of two would be seen at 100 % with half of the work to do."""
    tally = ReadTally(num_ranks=4)
    assert (tally.done_bytes, tally.total_bytes) == (0, 0)
    tally.note(BytesRead("a", 60, 60))
    assert (tally.done_bytes, tally.total_bytes) == (60, 240)
    tally.note(BytesRead("b", 10, 40))
    assert (tally.done_bytes, tally.total_bytes) == (70, 200)
    for rank in "abcde":  # one more than foreseen: a replica beyond the least
        tally.note(BytesRead(rank, 50, 50))
    assert (tally.done_bytes, tally.total_bytes) == (250, 250)
