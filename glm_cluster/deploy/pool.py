"""The place where fronts tell each other what they spent: a deployment of one replica, and a front's way to call it.

Knows Serve and its failures. Refuses to know what is told.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from glm_cluster.api.budgets import Spent
from glm_cluster.api.pool import Pool

_ANSWER_S = 5.0


class GlmPool:
    """One pool for all fronts."""

    def __init__(self) -> None:
        self._pool = Pool(time.monotonic)

    async def exchange(self, name: str, news: Mapping[str, Spent]) -> dict[str, Spent]:
        """What `Pool.exchange` says."""
        return self._pool.exchange(name, news)


class PoolClient:
    """One front's calls."""

    def __init__(self, handle: Any) -> None:
        self._exchange = handle.exchange
        self._name = uuid4().hex

    async def exchange(self, news: Mapping[str, Spent]) -> dict[str, Spent] | None:
        """What the others spent; None if that cannot be had now."""
        response = self._exchange.remote(self._name, news)
        call = asyncio.ensure_future(_answer(response))
        try:
            await asyncio.wait([call], timeout=_ANSWER_S)  # a call that somebody else cancels is no end of ours
            return None if not call.done() or call.cancelled() else call.result()
        except (RayError, RayServeException, TimeoutError):
            return None
        finally:
            if not call.done():
                call.cancel()
                response.cancel()


async def _answer(response: Any) -> dict[str, Spent]:
    answer: dict[str, Spent] = await response
    return answer
