"""A front's call to the pool: its failure is no answer, and nothing worse."""

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import DeploymentUnavailableError

from glm_cluster.api.budgets import Spent
from glm_cluster.deploy import pool
from glm_cluster.deploy.pool import GlmPool, PoolClient

NEWS = {"key": Spent(requests=2, tokens=5, num_open=1)}


class Response:
    """What Serve's handle returns, as far as it is used."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer = answer
        self.is_cancelled = False

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    def cancel(self) -> None:
        self.is_cancelled = True


class Handle:
    """A handle whose calls are answered by `answer`; it is its own method."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self._answer = answer
        self.exchange = self
        self.responses: list[Response] = []

    def remote(self, *given: Any) -> Response:
        self.responses.append(Response(lambda: self._answer(*given)))
        return self.responses[-1]


async def test_two_fronts_hear_of_each_other():
    place = GlmPool()
    one, two = (PoolClient(Handle(place.exchange)) for _ in range(2))
    assert await one.exchange({}) == {}
    assert await two.exchange(NEWS) == {}
    assert await one.exchange({}) == NEWS
    assert await two.exchange({}) == {}


@pytest.mark.parametrize("error", [ActorDiedError(), DeploymentUnavailableError(None), TimeoutError()])
async def test_a_failure_is_no_answer(error: Exception):
    async def fail(*given: object) -> None:
        raise error

    handle = Handle(fail)
    assert await PoolClient(handle).exchange(NEWS) is None


async def test_a_call_that_somebody_else_cancels_is_no_answer():
    async def cancelled(*given: object) -> None:
        raise asyncio.CancelledError

    assert await PoolClient(Handle(cancelled)).exchange(NEWS) is None


async def test_an_answer_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    async def hang(*given: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(pool, "_ANSWER_S", 0.01)
    handle = Handle(hang)
    assert await PoolClient(handle).exchange(NEWS) is None
    assert handle.responses[0].is_cancelled
