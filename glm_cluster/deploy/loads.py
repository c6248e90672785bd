"""How much work each replica is thought to have before it.

Knows what replicas report, which is a little old, and what was sent to them from here since. Refuses to know prompts.
"""

from bisect import bisect, insort
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

_REQUEST_TOKENS = 128  # a request inside a replica delays the next one as much as this many tokens to compute
_WAITING_TOKENS = 512  # and one that has not begun as this many more
_HALF_LIFE_S = 0.5  # of the prompts sent from here; that they were computed, only the end of the request says


def left_of(num_tokens: float, seconds: float) -> float:
    """Tokens thought not to be computed yet, so long after they were sent."""
    return num_tokens * float(0.5 ** (seconds / _HALF_LIFE_S))


@dataclass(slots=True)
class _Replica:
    from_others: int = 0  # requests it said it holds, less those in flight from here then
    waiting: int = 0
    backlog: float = 0.0  # tokens sent to be computed and thought not to be yet, at `backlog_at`
    backlog_at: float = 0.0

    def backlog_now(self, now: float) -> float:
        return self.backlog and left_of(self.backlog, now - self.backlog_at)


class Loads:
    """The replicas in service, and the requests in flight from here to any. Nothing takes longer the more there are,
    but for one that comes or goes.

    Load is counted in tokens to compute, so that it can be held against what a known prefix saves.
    """

    def __init__(self, random: Random, clock: Callable[[], float]) -> None:
        self._random = random
        self._clock = clock
        self._in_flight: dict[str, int] = {}
        self._replicas: dict[str, _Replica] = {}
        self._sorted: list[str] = []
        self._shuffled: list[str] = []  # in an order of this front's own: not all of them look at the same few

    def report(self, replica: str, held: int, waiting: int) -> None:
        """Note what a replica says of itself now. It is in service, if it was not before."""
        if replica not in self._replicas:
            self._replicas[replica] = _Replica()
            insort(self._sorted, replica)
            self._shuffle()
        self._replicas[replica].waiting = waiting
        self.correct(replica, held)

    def correct(self, replica: str, held: int) -> None:
        """Note how many requests a replica holds now, those from here among them."""
        if (known := self._replicas.get(replica)) is not None:
            known.from_others = max(held - self.in_flight(replica), 0)

    def withdraw(self, replica: str) -> None:
        """Take a replica out of service; what is in flight to it stays counted until it ends."""
        if self._replicas.pop(replica, None) is not None:
            del self._sorted[bisect(self._sorted, replica) - 1]
            self._shuffle()

    def send(self, replica: str, num_tokens: int) -> None:
        """Count one more request in flight, with so many tokens to compute."""
        self._in_flight[replica] = self.in_flight(replica) + 1
        if (known := self._replicas.get(replica)) is not None:
            now = self._clock()
            known.backlog = known.backlog_now(now) + num_tokens
            known.backlog_at = now

    def end(self, replica: str, num_tokens: int, sent_at: float) -> None:
        """Count one less; what is still thought to be left of its tokens is done, whatever an older report says."""
        self._in_flight[replica] -= 1
        if not self._in_flight[replica]:
            del self._in_flight[replica]
        if (known := self._replicas.get(replica)) is not None:
            now = self._clock()
            known.backlog = max(0.0, known.backlog_now(now) - left_of(num_tokens, now - sent_at))
            known.backlog_at = now

    def in_flight(self, replica: str) -> int:
        """Requests sent from here that have not ended."""
        return self._in_flight.get(replica, 0)

    def tokens(self, replica: str, now: float) -> float | None:
        """The load of a replica; None where it is not in service."""
        if (known := self._replicas.get(replica)) is None:
            return None
        held = known.from_others + self._in_flight.get(replica, 0)
        return held * _REQUEST_TOKENS + known.waiting * _WAITING_TOKENS + known.backlog_now(now)

    def some(self, count: int) -> list[str]:
        """`count` replicas in service, or all if there are fewer, beginning anywhere."""
        names = self._shuffled
        start = int(self._random.random() * len(names))
        return names[start : start + count] + names[: min(start, max(start + count - len(names), 0))]

    def home(self, number: int) -> str | None:
        """The replica for a number: the same in every front that knows the same replicas."""
        return self._sorted[number % len(self._sorted)] if self._sorted else None

    def _shuffle(self) -> None:
        self._shuffled = self._random.sample(self._sorted, len(self._sorted))
