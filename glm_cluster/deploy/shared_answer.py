"""A question that many ask and that costs something: asked once at a time, its answer kept for a moment.

Knows a clock. Refuses to know what is asked.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedAnswer(Generic[T]):
    """The answer to `ask`, no older than `kept_s`. Whoever asks meanwhile waits for the same one."""

    def __init__(
        self, ask: Callable[[], Awaitable[T]], *, kept_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._kept_s = kept_s
        self._clock = clock
        self._asking: asyncio.Task[T] | None = None
        self._fresh_until = 0.0  # of an answer that has come

    async def get(self) -> T:
        """The answer. Whoever stops waiting for it takes it from nobody else."""
        asking = self._asking
        if asking is None or (asking.done() and self._clock() >= self._fresh_until):
            asking = self._asking = asyncio.create_task(self._fresh())
        return await asyncio.shield(asking)

    async def _fresh(self) -> T:
        self._fresh_until = float("-inf")  # an error is not kept
        answer = await self._ask()
        self._fresh_until = self._clock() + self._kept_s
        return answer
