"""What the front processes tell each other of the budgets they share, through one place that all of them can call.

Knows who spoke last and what each has yet to hear. Refuses to know keys, and to be needed: a front that cannot reach it
decides by its own books.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import reduce
from operator import add
from typing import TypeAlias

from glm_cluster.api.budgets import Spent

PERIOD_S = 0.5  # how old the news may be
SILENT_S = 5.0  # what a front that has said nothing for so long had open is no longer open

News: TypeAlias = Mapping[str, Spent]  # by the key's digest


class Pool:
    """The common place. Each front hears once of what every other one spends from its own first call on."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._fronts: dict[str, _Front] = {}

    def exchange(self, name: str, news: News) -> dict[str, Spent]:
        """Take the news of the front `name`; what the others have spent since its last call, and have open."""
        now = self._clock()
        self._fronts = {known: front for known, front in self._fronts.items() if now - front.heard_at < SILENT_S}
        front = self._fronts.setdefault(name, _Front())
        front.heard_at = now
        front.num_open = {digest: spent.num_open for digest, spent in news.items() if spent.num_open}
        others = [other for other in self._fronts.values() if other is not front]
        for other in others:
            other.owe(news)
        return front.collect(others)


class _Front:
    """One front as the pool knows it."""

    def __init__(self) -> None:
        self.heard_at = 0.0
        self.num_open: dict[str, int] = {}
        self._unheard: dict[str, Spent] = {}

    def owe(self, news: News) -> None:
        """Keep what it has to hear."""
        for digest, spent in news.items():
            one = Spent(requests=spent.requests, tokens=spent.tokens)
            self._unheard[digest] = self._unheard.get(digest, Spent()) + one

    def collect(self, others: list["_Front"]) -> dict[str, Spent]:
        """What it has to hear, and no more after that."""
        unheard, self._unheard = self._unheard, {}
        opened = [{digest: Spent(num_open=count) for digest, count in other.num_open.items()} for other in others]
        return reduce(_sum, opened, unheard)


def _sum(one: dict[str, Spent], other: dict[str, Spent]) -> dict[str, Spent]:
    both = one.keys() | other.keys()
    return {digest: add(one.get(digest, Spent()), other.get(digest, Spent())) for digest in both}


async def keep_exchanging(
    news: Callable[[], News], hear: Callable[[News], None], exchange: Callable[[News], Awaitable[News | None]]
) -> None:
    """Tell and hear every half second for as long as this runs.

    News that got lost on their way is not told again: it may have arrived, and what is charged twice is refused to
    somebody. None comes back instead.
    """
    while True:
        await asyncio.sleep(PERIOD_S)
        try:
            heard = await exchange(news())
        except Exception:  # the edge of a task that nobody awaits: what was open elsewhere would stay so for good
            logging.getLogger(__name__).exception("the other fronts cannot be heard of")
            heard = None
        hear(heard or {})
