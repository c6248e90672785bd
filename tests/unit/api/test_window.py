"""Prompts that come together are tokenised together."""

import asyncio
import threading
import time

import pytest

from glm_cluster.api.window import LOOP_BYTES, EncodeWindow
from glm_cluster.metrics import NoMeters


class ByteTokenizer:
    """Keeps the batches it was given; waits for `gate` before each."""

    def __init__(self):
        self.batches = []
        self.starts = []
        self.gate = threading.Event()
        self.gate.set()

    def encode_batch(self, texts):
        self.starts.append(time.monotonic())
        self.batches.append(list(texts))
        assert self.gate.wait(60)
        if "poison" in texts:
            raise ValueError("poison")
        return [tuple(text.encode()) for text in texts]


@pytest.fixture
def tokenizer():
    return ByteTokenizer()


@pytest.fixture
def window(tokenizer):
    window = EncodeWindow(tokenizer, NoMeters())
    yield window
    tokenizer.gate.set()
    window.close()


async def test_arrivals_of_one_instant_are_one_batch(window, tokenizer, tally):
    texts = [f"t{i}" for i in range(50)]
    assert await asyncio.gather(*map(window.encode, texts)) == [tuple(text.encode()) for text in texts]
    assert tokenizer.batches == [texts]


async def test_arrivals_during_a_batch_form_the_next(window, tokenizer):
    tokenizer.gate.clear()
    first = asyncio.create_task(window.encode("first"))
    while not tokenizer.batches:
        await asyncio.sleep(0.001)
    late = []
    for i in range(5):
        late.append(asyncio.create_task(window.encode(f"late{i}")))
        await asyncio.sleep(0.001)
    assert len(tokenizer.batches) == 1
    tokenizer.gate.set()
    await asyncio.gather(first, *late)
    assert tokenizer.batches == [["first"], [f"late{i}" for i in range(5)]]


async def test_an_idle_window_does_not_wait(window, tokenizer, monkeypatch):
    monkeypatch.setattr("glm_cluster.api.window.WINDOW_S", 60.0)
    assert await asyncio.wait_for(window.encode("a"), 30) == (97,)


async def test_a_busy_window_starts_a_batch_at_most_every_window(window, tokenizer, monkeypatch):
    monkeypatch.setattr("glm_cluster.api.window.WINDOW_S", 0.1)
    begun = time.monotonic()
    await window.encode("a")
    await asyncio.gather(window.encode("b"), window.encode("c"))
    assert tokenizer.batches == [["a"], ["b", "c"]]
    assert tokenizer.starts[1] - begun > 0.09


async def test_prompts_that_share_a_prefix_go_on_side_by_side(window):
    order = []

    async def encode(text):
        await window.encode(text)
        order.append(text)

    await asyncio.gather(*map(encode, ["sys1 b", "sys2 a", "sys1 a", "sys2 b"]))
    assert order == ["sys1 a", "sys1 b", "sys2 a", "sys2 b"]


async def test_a_failed_batch_fails_its_prompts_and_no_others(window):
    results = await asyncio.gather(window.encode("poison"), window.encode("a"), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]
    assert await window.encode("b") == (98,)


async def test_a_client_that_left_is_not_encoded_and_holds_nobody_up(window, tokenizer):
    tokenizer.gate.clear()
    first = asyncio.create_task(window.encode("first"))
    while not tokenizer.batches:
        await asyncio.sleep(0.001)
    gone, stays = asyncio.create_task(window.encode("gone")), asyncio.create_task(window.encode("stays"))
    await asyncio.sleep(0.001)
    gone.cancel()
    first.cancel()
    tokenizer.gate.set()
    assert await stays == tuple(b"stays")
    assert tokenizer.batches == [["first"], ["stays"]]


async def test_batch_sizes_are_reported(tokenizer, tally):
    window = EncodeWindow(tokenizer, tally)
    await asyncio.gather(*map(window.encode, "abc"))
    assert tally.observed == [("glm_encode_batch_size", 3)]
    window.close()


async def test_long_work_holds_no_prompt_up(window):
    """A body that took seconds to read did."""
    may_end = threading.Event()
    reading = asyncio.create_task(window.off_loop(lambda: may_end.wait(60), size_bytes=LOOP_BYTES + 1))
    try:
        assert await asyncio.wait_for(window.encode("a"), 30) == (97,)
        assert not reading.done()
    finally:
        may_end.set()
    assert await reading


async def test_long_work_for_nobody_is_not_begun(window):
    may_end, begun = threading.Event(), []
    first = asyncio.create_task(window.off_loop(lambda: may_end.wait(60), size_bytes=LOOP_BYTES + 1))
    gone = asyncio.create_task(window.off_loop(lambda: begun.append("gone"), size_bytes=LOOP_BYTES + 1))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    may_end.set()
    assert await first
    await window.off_loop(lambda: begun.append("next"), size_bytes=LOOP_BYTES + 1)
    assert begun == ["next"]


async def test_a_short_reply_is_made_at_once_and_here(window):
    threads = set()

    def items():
        for number in range(10):
            threads.add(threading.current_thread())
            yield number

    assert await window.drain(items(), lambda number: 100) == list(range(10))
    assert threads == {threading.main_thread()}


async def test_a_long_reply_is_made_in_slices_elsewhere(window, tokenizer):
    """Prompts are tokenised between the slices: a reply that takes seconds does not hold them up."""
    threads, made = [], 0

    def items():
        nonlocal made
        for number in range(100):
            threads.append(threading.current_thread())
            made += 1
            yield number

    draining = asyncio.create_task(window.drain(items(), lambda number: LOOP_BYTES))
    await window.encode("between")
    assert made < 100
    assert await draining == list(range(100))
    assert threads[0] is threading.main_thread()
    assert threading.main_thread() not in threads[2:]


async def test_nothing_to_drain(window):
    assert await window.drain(iter(()), len) == []


async def test_an_error_while_draining_goes_on_up(window):
    def items():
        yield b"a" * LOOP_BYTES
        yield b"a" * LOOP_BYTES
        raise ValueError("poison")

    with pytest.raises(ValueError, match="poison"):
        await window.drain(items(), len)
