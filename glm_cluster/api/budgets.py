"""What the bearers of keys may still use: requests and tokens a minute, and requests at once.

Knows keys and a monotonic clock. Each front process keeps its own books, and decides by them alone; what other fronts
spend is charged to them as soon as it is heard of. Refuses to know how that comes about.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from glm_cluster.errors import RateLimited
from glm_cluster.keys import ApiKey

_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a key's bearer spent at a front since it was last asked, and has open there."""

    requests: int = 0
    tokens: int = 0  # negative: more was given back of what had been reserved
    num_open: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            requests=self.requests + other.requests,
            tokens=self.tokens + other.tokens,
            num_open=self.num_open + other.num_open,
        )


class Bucket:
    """Something used that flows back at a steady rate. `spent` is what has not; the room is a minute's worth."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spent = 0.0
        self._since = clock()

    def wait_s(self, amount: float, per_minute: int) -> float:
        """How long until `amount` more may be spent; 0: now. More than a minute's worth takes an empty bucket."""
        self._flow(per_minute)
        over = self._spent + min(amount, per_minute) - per_minute
        return max(over, 0.0) * _MINUTE_S / per_minute

    def spend(self, amount: float) -> None:
        """Add to what is spent, or take some of it back."""
        self._spent = max(self._spent + amount, 0.0)

    def charge(self, amount: float, per_minute: int) -> None:
        """Spend what may not be refused any more: it was spent elsewhere."""
        self._flow(per_minute)
        self.spend(amount)

    def _flow(self, per_minute: int) -> None:
        now = self._clock()
        self._spent = max(self._spent - (now - self._since) * per_minute / _MINUTE_S, 0.0)
        self._since = now


class Budget:
    """The books of one key. What a key may use is asked each time: its entry may change."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._requests = Bucket(clock)
        self._tokens = Bucket(clock)
        self._new_requests = 0
        self._new_tokens = 0
        self._num_open = 0
        self._num_open_elsewhere = 0

    @contextmanager
    def request(self, key: ApiKey) -> Iterator[None]:
        """Hold one request's place, or refuse it."""
        num_open = self._num_open + self._num_open_elsewhere
        if key.max_concurrent is not None and num_open >= key.max_concurrent:
            raise RateLimited(
                f"key {key.name!r} has {num_open} requests open, and may have {key.max_concurrent}; wait for one to end"
            )
        if (per_minute := key.requests_per_minute) is not None:
            _wait(key, self._requests.wait_s(1, per_minute), f"{per_minute} requests")
            self._requests.spend(1)
        self._new_requests += 1
        self._num_open += 1
        try:
            yield
        finally:
            self._num_open -= 1

    def reserve_tokens(self, key: ApiKey, amount: int) -> int:
        """Spend the most a request can use, or refuse it; what was spent, a minute's worth at most."""
        if (per_minute := key.tokens_per_minute) is None:
            return 0
        _wait(key, self._tokens.wait_s(amount, per_minute), f"{per_minute} tokens")
        reserved = min(amount, per_minute)
        self._spend_tokens(reserved)
        return reserved

    def settle_tokens(self, reserved: int, used: int) -> None:
        """Put what a request did use in the place of what was spent for it; nothing, where there was no budget."""
        if reserved:
            self._spend_tokens(used - reserved)

    def news(self) -> Spent:
        """What was spent here since this was last asked, and is open now."""
        news = Spent(requests=self._new_requests, tokens=self._new_tokens, num_open=self._num_open)
        self._new_requests = self._new_tokens = 0
        return news

    def hear(self, key: ApiKey, elsewhere: Spent) -> None:
        """Charge what was spent elsewhere, and take up what is open there."""
        if (per_minute := key.requests_per_minute) is not None:
            self._requests.charge(elsewhere.requests, per_minute)
        if (per_minute := key.tokens_per_minute) is not None:
            self._tokens.charge(elsewhere.tokens, per_minute)
        self._num_open_elsewhere = elsewhere.num_open

    def forget_elsewhere(self) -> None:
        """Nothing is open elsewhere."""
        self._num_open_elsewhere = 0

    def _spend_tokens(self, amount: int) -> None:
        self._tokens.spend(amount)
        self._new_tokens += amount


class Budgets:
    """The books of all keys."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._of: dict[str, Budget] = {}
        self._open_elsewhere: set[str] = set()

    def of(self, key: ApiKey) -> Budget:
        """Those of one key, whatever its entry says by now."""
        return self._of.setdefault(key.sha256, Budget(self._clock))

    def news(self) -> dict[str, Spent]:
        """What other fronts have to hear of, by the key's digest."""
        news = {digest: budget.news() for digest, budget in self._of.items()}
        return {digest: spent for digest, spent in news.items() if spent != Spent()}

    def hear(self, keys: Iterable[ApiKey], elsewhere: Mapping[str, Spent]) -> None:
        """Charge what other fronts spent. Nothing is open at those of which nothing was heard."""
        concerned = elsewhere.keys() | self._open_elsewhere
        self._open_elsewhere = {digest for digest, spent in elsewhere.items() if spent.num_open}
        known = {key.sha256: key for key in keys}
        for digest in concerned:
            if (key := known.get(digest)) is not None:
                self.of(key).hear(key, elsewhere.get(digest, Spent()))
            elif (budget := self._of.get(digest)) is not None:  # the key may be back one day
                budget.forget_elsewhere()


def _wait(key: ApiKey, wait_s: float, budget: str) -> None:
    if wait_s > 0:
        after = math.ceil(wait_s)
        raise RateLimited(
            f"key {key.name!r} may use {budget} a minute and has; try again in {after} s", retry_after_s=after
        )
