"""What the bearers of keys may still use: requests and tokens a minute, and requests at once.

Knows keys and a monotonic clock. Each front process keeps its own books: with several, a bearer whose requests spread
over all of them gets each budget as many times.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from glm_cluster.errors import RateLimited
from glm_cluster.keys import ApiKey

_MINUTE_S = 60.0


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

    def _flow(self, per_minute: int) -> None:
        now = self._clock()
        self._spent = max(self._spent - (now - self._since) * per_minute / _MINUTE_S, 0.0)
        self._since = now


class Budget:
    """The books of one key. What a key may use is asked each time: its entry may change."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._requests = Bucket(clock)
        self._tokens = Bucket(clock)
        self.num_open = 0

    @contextmanager
    def request(self, key: ApiKey) -> Iterator[None]:
        """Hold one request's place, or refuse it."""
        if key.max_concurrent is not None and self.num_open >= key.max_concurrent:
            raise RateLimited(
                f"key {key.name!r} has {self.num_open} requests open, and may have {key.max_concurrent}; wait for one "
                "to end"
            )
        if (per_minute := key.requests_per_minute) is not None:
            _wait(key, self._requests.wait_s(1, per_minute), f"{per_minute} requests")
            self._requests.spend(1)
        self.num_open += 1
        try:
            yield
        finally:
            self.num_open -= 1

    def reserve_tokens(self, key: ApiKey, amount: int) -> int:
        """Spend the most a request can use, or refuse it; what was spent, a minute's worth at most."""
        if (per_minute := key.tokens_per_minute) is None:
            return 0
        _wait(key, self._tokens.wait_s(amount, per_minute), f"{per_minute} tokens")
        reserved = min(amount, per_minute)
        self._tokens.spend(reserved)
        return reserved

    def settle_tokens(self, reserved: int, used: int) -> None:
        """Put what a request did use in the place of what was spent for it."""
        self._tokens.spend(used - reserved)


class Budgets:
    """The books of all keys."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._of: dict[str, Budget] = {}

    def of(self, key: ApiKey) -> Budget:
        """Those of one key, whatever its entry says by now."""
        return self._of.setdefault(key.sha256, Budget(self._clock))


def _wait(key: ApiKey, wait_s: float, budget: str) -> None:
    if wait_s > 0:
        after = math.ceil(wait_s)
        raise RateLimited(
            f"key {key.name!r} may use {budget} a minute and has; try again in {after} s", retry_after_s=after
        )
