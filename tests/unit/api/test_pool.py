"""Budgets that several fronts share: what one spends, the others have spent too, half a second later."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_cluster.api import pool as pools
from glm_cluster.api.access import Access
from glm_cluster.api.budgets import Budgets, Spent
from glm_cluster.api.callers import Caller, Callers
from glm_cluster.api.pool import SILENT_S, Pool, keep_exchanging
from glm_cluster.errors import RateLimited
from glm_cluster.keys import ApiKey
from glm_cluster.metrics import NoMeters

KEY = hashlib.sha256(b"secret").hexdigest()


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fronts:
    """Some fronts and the pool between them."""

    def __init__(self, file: Path, count: int = 2) -> None:
        self.clock = Clock()
        self.pool: Pool | None = Pool(self.clock)
        self.all = [Access(meters=NoMeters(), callers=Callers(file), clock=self.clock) for _ in range(count)]

    def exchange(self, *indices: int) -> None:
        """Have each of them tell and hear once, as `keep_exchanging` does."""
        for index in indices:
            front, news = self.all[index], self.all[index].news()
            front.hear({} if self.pool is None else self.pool.exchange(f"front-{index}", news))

    def open(self, index: int, num_prompt: int = 1, max_tokens: int = 0) -> ExitStack:
        """Begin a request."""
        front, stack = self.all[index], ExitStack()
        caller = Caller(request_id="r", key=front.callers.keys[0])
        account = stack.enter_context(front.request("http", "chat", caller))
        account.admit(model="m", num_prompt_tokens=num_prompt, max_tokens=max_tokens)
        return stack

    def run(self, index: int, num_prompt: int = 1) -> None:
        """A whole request."""
        self.open(index, num_prompt).close()


@pytest.fixture
def fronts(tmp_path: Path) -> Callable[..., Fronts]:
    def make(**budgets: int) -> Fronts:
        file = tmp_path / "keys"
        extra = "".join(f", {name}: {value}" for name, value in budgets.items())
        file.write_text(f"- {{name: ada, sha256: {KEY}{extra}}}\n")
        made = Fronts(file)
        made.exchange(0, 1)
        return made

    return make


def refused(fronts: Fronts, index: int, **asked: int) -> float:
    """How long a request that is refused there has to wait."""
    with pytest.raises(RateLimited) as caught:
        fronts.run(index, **asked)
    return caught.value.retry_after_s


def test_requests_at_one_front_are_spent_at_the_other(fronts: Callable[..., Fronts]):
    both = fronts(requests_per_minute=3)
    both.run(0)
    both.run(0)
    both.exchange(0, 1)
    both.run(1)
    assert refused(both, 1) == 20
    both.exchange(1, 0)
    assert refused(both, 0) == 20


def test_what_was_too_much_in_between_is_waited_off(fronts: Callable[..., Fronts]):
    both = fronts(requests_per_minute=3)
    for index in (0, 0, 0, 1, 1, 1):
        both.run(index)
    both.exchange(0, 1, 0, 1)
    assert [refused(both, index) for index in (0, 1)] == [80, 80]
    both.clock.now = 80
    both.run(0)


def test_tokens_are_reserved_everywhere_and_given_back_everywhere(fronts: Callable[..., Fronts]):
    both = fronts(tokens_per_minute=100)
    with both.open(0, num_prompt=10, max_tokens=80):
        both.exchange(0, 1)
        assert refused(both, 1, num_prompt=20) == 6
    both.exchange(0, 1)
    both.run(1, num_prompt=90)
    assert refused(both, 1, num_prompt=1) == 1


def test_what_is_open_at_one_front_is_open_at_the_other(fronts: Callable[..., Fronts]):
    both = fronts(max_concurrent=2)
    with both.open(0):
        both.exchange(0, 1)
        with both.open(1), pytest.raises(RateLimited, match="has 2 requests open"):
            both.run(1)
    both.exchange(0, 1)
    with both.open(1):
        both.run(1)


def test_what_a_dead_front_had_open_is_not_open(fronts: Callable[..., Fronts]):
    both = fronts(max_concurrent=1)
    with both.open(0):
        both.exchange(0, 1)
        refused(both, 1)
        both.clock.now = SILENT_S
        both.exchange(1)
        both.run(1)


def test_without_the_pool_each_goes_by_its_own_books(fronts: Callable[..., Fronts]):
    both = fronts(requests_per_minute=2, max_concurrent=1)
    with both.open(0):
        both.exchange(0, 1)
        refused(both, 1)
        both.pool = None
        both.exchange(0, 1)
        both.run(1)
    assert refused(both, 1) == 30


def test_a_new_pool_charges_nothing_twice(fronts: Callable[..., Fronts]):
    both = fronts(requests_per_minute=3)
    both.run(0)
    both.exchange(0, 1)
    both.pool = Pool(both.clock)
    both.exchange(0, 1, 0, 1)
    both.run(1)
    both.run(1)
    assert refused(both, 1) == 20


def test_what_is_heard_after_a_long_silence_counts_in_full(fronts: Callable[..., Fronts]):
    """What flows back while nothing is spent must not flow back from what is spent only afterwards."""
    both = fronts(requests_per_minute=3)
    both.clock.now = 600.0
    both.all[1].hear({KEY: Spent(requests=3)})
    assert refused(both, 1) == 20


def test_a_key_that_is_no_longer_there_is_passed_over(fronts: Callable[..., Fronts]):
    both = fronts(requests_per_minute=3)
    both.all[0].hear({"0" * 64: Spent(requests=5)})
    both.run(0)


CALLS = st.lists(st.tuples(st.integers(0, 2), st.integers(-5, 9), st.booleans()), max_size=60)


@given(CALLS)
def test_each_hears_once_of_everything_the_others_spent(calls: list[tuple[int, int, bool]]):
    """Fronts spend or call in any order; when all have called twice more, nothing is left to hear."""
    pool = Pool(lambda: 0.0)
    spent, heard, untold = [0] * 3, [0] * 3, [0] * 3

    def call(front: int) -> None:
        news = {KEY: Spent(requests=1, tokens=untold[front], num_open=front)}
        untold[front] = 0
        answer = pool.exchange(str(front), news).get(KEY, Spent())
        heard[front] += answer.tokens
        assert answer.num_open in (0, sum(range(3)) - front) or len(pool._fronts) < 3

    for front in range(3):
        call(front)
    for front, tokens, calls_now in calls:
        spent[front] += tokens
        untold[front] += tokens
        if calls_now:
            call(front)
    for front in (*range(3), *range(3)):
        call(front)
    assert heard == [sum(spent) - own for own in spent]


async def test_fronts_keep_exchanging_whatever_comes_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(pools, "PERIOD_S", 0)
    answers = [{KEY: Spent(requests=1)}, None, ZeroDivisionError("a defect"), {}]
    told: list[Mapping[str, Spent]] = []
    heard: list[Mapping[str, Spent]] = []

    async def exchange(news: Mapping[str, Spent]) -> Mapping[str, Spent] | None:
        told.append(news)
        if isinstance(answer := answers[len(heard)], Exception):
            raise answer
        return answer

    def hear(news: Mapping[str, Spent]) -> None:
        heard.append(news)
        if len(heard) == len(answers):
            exchanging.cancel()

    exchanging = asyncio.create_task(keep_exchanging(lambda: {KEY: Spent(tokens=7)}, hear, exchange))
    await asyncio.wait([exchanging], timeout=60)
    assert told == [{KEY: Spent(tokens=7)}] * 4
    assert heard == [{KEY: Spent(requests=1)}, {}, {}, {}]
    assert "a defect" in caplog.text


def test_there_is_no_news_of_those_who_do_nothing():
    budgets = Budgets(lambda: 0.0)
    key = ApiKey(name="ada", sha256=KEY)
    with budgets.of(key).request(key):
        assert budgets.news() == {KEY: Spent(requests=1, num_open=1)}
        assert budgets.news() == {KEY: Spent(num_open=1)}
    assert budgets.news() == {}


def test_a_key_that_is_taken_away_and_given_back_has_nothing_open_elsewhere():
    key = ApiKey(name="a", sha256=KEY, max_concurrent=1)
    books = Budgets(lambda: 0.0)
    books.hear([key], {KEY: Spent(num_open=1)})
    with pytest.raises(RateLimited), books.of(key).request(key):
        pass
    books.hear([], {})
    with books.of(key).request(key):
        pass
