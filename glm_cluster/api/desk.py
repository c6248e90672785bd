"""Where grammars are looked over before an engine hears of them, on a thread that tokenises nothing.

Knows how long somebody may wait. What is wrong with a grammar is its sentence; the field at fault is added here.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from glm_cluster.errors import InvalidRequest, Overloaded
from glm_cluster.records import Grammar
from glm_cluster.text.grammar.vocabulary import Vocabulary
from glm_cluster.text.grammar.workshop import Workshop

T = TypeVar("T")

PATIENCE_S = 10.0  # one takes two or three at worst
MAX_QUEUED = 64  # grammars that somebody waits for
KEPT = 64  # of what was written last


class GrammarDesk:
    """Compiles each for a vocabulary of bytes, which is quick and shows every fault. `close()` ends its thread."""

    def __init__(self, control_tokens: Collection[str], *, patience_s: float = PATIENCE_S) -> None:
        self._workshop = Workshop(lambda: Vocabulary.of_bytes(control_tokens))
        self._patience_s = patience_s
        self._written: OrderedDict[bytes, Any] = OrderedDict()

    async def check(self, grammar: Grammar, param: str) -> None:
        """Raise InvalidRequest that names `param` if no engine could follow the grammar."""
        if self._workshop.num_wanted >= MAX_QUEUED and not self._workshop.has(grammar):
            raise _overloaded(param)
        job = self._workshop.want(grammar)
        try:
            compiled = asyncio.wrap_future(job)
            done, _ = await asyncio.wait([compiled], timeout=self._patience_s)
        finally:
            self._workshop.leave(job)
        if not done or compiled.cancelled():
            raise _overloaded(param)
        error = compiled.exception()
        if isinstance(error, InvalidRequest):
            raise InvalidRequest(f"{param}: {error.message}", param=param)
        if error is not None:
            raise error

    async def write(self, work: Callable[[], T], param: str, key: bytes) -> T:
        """What `work` returns, which looks schemas over; it is not begun if nobody waits for it any more.

        `key`: of all that it depends on. What was written by the same not long ago is returned at once.
        """
        if key in self._written:
            self._written.move_to_end(key)
            found: T = self._written[key]
            return found
        written = await self._done(work, param)
        self._written[key] = written
        while len(self._written) > KEPT:
            self._written.popitem(last=False)
        return written

    async def _done(self, work: Callable[[], T], param: str) -> T:
        if self._workshop.num_wanted >= MAX_QUEUED:
            raise _overloaded(param)
        job = asyncio.wrap_future(self._workshop.run(work))
        try:
            done, _ = await asyncio.wait([job], timeout=self._patience_s)
        finally:
            job.cancel()
        if not done or job.cancelled():
            raise _overloaded(param)
        return job.result()

    def close(self) -> None:
        """End the thread once it has finished what it is doing."""
        self._workshop.close()


def _overloaded(param: str) -> Overloaded:
    return Overloaded("too many structured outputs are being prepared here; try again later", param=param)
