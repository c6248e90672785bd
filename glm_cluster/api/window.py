"""Gathers prompts so that one call tokenises many, on a thread of its own; and long work on another one.

Knows no request: text in, ids out. A long body to read or a long prompt to render holds up others like it, no text that
waits for its ids. Long replies are made between the batches, a slice at a time.

The first prompt after a pause is encoded at once; while prompts keep coming, a batch starts at most every 2 ms, and
no sooner than the one before it is done.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias, TypeVar

from glm_cluster.metrics import ENCODE_BATCH, Meters
from glm_cluster.text.tokenizer import Text, Tokenizer

WINDOW_S = 0.002
LOOP_BYTES = 64 << 10  # more than this is not worked through on the event loop: a millisecond or two

T = TypeVar("T")
Ids: TypeAlias = tuple[int, ...]


class EncodeWindow:
    """Two worker threads, and the prompts that wait for theirs. `close()` ends the threads."""

    def __init__(self, tokenizer: Tokenizer, meters: Meters) -> None:
        self._tokenizer = tokenizer
        self._meters = meters
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")
        self._other = ThreadPoolExecutor(max_workers=1, thread_name_prefix="long-work")
        self._jobs: list[tuple[Text, asyncio.Future[Ids]]] = []
        self._rounds: asyncio.Task[None] | None = None  # alive while there are jobs
        self._next_start = 0.0  # on the loop's clock

    async def encode(self, text: Text) -> Ids:
        """The ids of `text`, from a batch with whatever else came in time."""
        future: asyncio.Future[Ids] = asyncio.get_running_loop().create_future()
        self._jobs.append((text, future))
        if self._rounds is None:
            self._rounds = asyncio.create_task(self._run())
        return await future

    async def off_loop(self, work: Callable[[], T], *, size_bytes: int) -> T:
        """What `work` returns: done here at once if it has little to go through, else by the other thread.

        It is not begun if nobody waits for it any more.
        """
        if size_bytes <= LOOP_BYTES:
            return work()
        return await asyncio.wrap_future(self._other.submit(work))

    async def drain(self, items: Iterator[T], size_bytes: Callable[[T], int]) -> list[T]:
        """All of `items`, each made when it is asked for, a slice at a time.

        The first slice is made here, and is all of it for most answers. Later ones are made by the thread that encodes,
        with room between them for its batches.
        """
        drained, is_all = _slice(items, size_bytes)
        while not is_all:
            more, is_all = await asyncio.wrap_future(self._worker.submit(_slice, items, size_bytes))
            drained += more
        return drained

    def close(self) -> None:
        """End the threads once they have finished what they are doing."""
        for worker in (self._worker, self._other):
            worker.shutdown(wait=False)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._jobs:
                await asyncio.sleep(self._next_start - loop.time())  # even 0 lets this tick's other prompts in
                self._next_start = loop.time() + WINDOW_S
                jobs, self._jobs = [job for job in self._jobs if not job[1].done()], []
                await self._encode(jobs)
        finally:
            self._rounds = None

    async def _encode(self, jobs: Sequence[tuple[Text, asyncio.Future[Ids]]]) -> None:
        if not jobs:
            return
        self._meters.observe(ENCODE_BATCH, len(jobs))
        batch = asyncio.wrap_future(self._worker.submit(self._tokenizer.encode_batch, [text for text, _ in jobs]))
        await asyncio.wait([batch])
        waiting = [future for _, future in jobs]
        if error := batch.exception():
            _refuse(waiting, error)
        else:
            _release(waiting, batch.result())


def _slice(items: Iterator[T], size_bytes: Callable[[T], int]) -> tuple[list[T], bool]:
    """The next items until they come to what may be made at one go, and whether these were the last."""
    made: list[T] = []
    left_bytes = LOOP_BYTES
    for item in items:
        made.append(item)
        left_bytes -= size_bytes(item)
        if left_bytes <= 0:
            return made, False
    return made, True


def _refuse(waiting: Sequence[asyncio.Future[Ids]], error: BaseException) -> None:
    for future in waiting:
        if not future.done():
            future.set_exception(error)


def _release(waiting: Sequence[asyncio.Future[Ids]], encoded: Sequence[Ids]) -> None:
    """Wake the waiters in the order of their ids, so that prompts which share a prefix go on side by side."""
    for index in sorted(range(len(waiting)), key=encoded.__getitem__):
        if not waiting[index].done():
            waiting[index].set_result(encoded[index])
