"""Which replica a request should go to: where its prefix was computed before, unless that one is busier by too much.

Knows prompts and replica names. Knows no Ray and asks nobody. A choice costs tens of microseconds, most of them for the
prompt's hashes, however many replicas there are: those that know the prompt are held against a few others.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple

from glm_cluster.deploy.loads import Loads
from glm_cluster.deploy.prefixes import BLOCK, Prefixes, prefix_hashes

# Replicas looked at beside those that know the prompt; of two fronts that took the least loaded, both would.
_SAMPLE = 4
_PREFIX_WEIGHT = 2.0  # a token that need not be computed also takes no second place in a cache
_UNROUTED_S = 5.0  # a choice that never became a call stops counting after this


class _Offer(NamedTuple):
    """What was ranked and not yet accepted by a replica."""

    at: float
    hashes: Sequence[int]
    num_tokens: int


class _Sent(NamedTuple):
    """A call under way."""

    replica: str
    num_tokens: int  # to compute
    at: float


class Placement:
    """Ranks replicas for a request, and keeps count of what it sent where.

    With `num_fronts` a prompt that is new here may be known to the others. All of them send what is new to one home, so
    a conversation that comes back through another front finds its replica, if that is not too busy.
    """

    def __init__(
        self, *, num_fronts: int = 1, random: Random | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._elsewhere = 1.0 - 1.0 / num_fronts  # how likely another front knows what is new here
        self._clock = clock
        self._prefixes = Prefixes()
        self._loads = Loads(random or Random(), clock)
        self._calls: dict[str, _Sent] = {}
        self._offers: OrderedDict[str, _Offer] = OrderedDict()  # call -> what was offered for it

    def report(self, replica: str, held: int, waiting: int = 0) -> None:
        """Note what a replica says it holds, and how much of that has not begun. It is in service from now on."""
        self._loads.report(replica, held, waiting)

    def correct(self, replica: str, held: int) -> None:
        """Note what a replica held when it took a call; of one that is not in service nothing is noted."""
        self._loads.correct(replica, held)

    def withdraw(self, replica: str) -> None:
        """Send nothing to a replica until it reports again."""
        self._loads.withdraw(replica)

    def rank(self, call: str, prompt: tuple[int, ...], avoid: Collection[str] = ()) -> list[str]:
        """A few replicas in service, best first, those to `avoid` last; the best is counted as chosen."""
        now = self._clock()
        self._expire(now)
        self.done(call)
        hashes = prefix_hashes(prompt)
        num_known = self._prefixes.known(hashes)
        matched = self._prefixes.matched(hashes, num_known)
        ranked = self._cheapest(self._saved(matched, hashes, num_known, len(avoid)), avoid, now)
        self._offers[call] = _Offer(now, hashes, len(prompt))
        if ranked:
            self._send(call, ranked[0], hashes, len(prompt) - matched.get(ranked[0], 0))
        return ranked

    def routed(self, call: str, replica: str) -> None:
        """Note that `replica`, which need not be the best, took the call."""
        offer, sent = self._offers.pop(call, None), self._calls.get(call)
        if offer is not None and (sent is None or sent.replica != replica):
            self.done(call)
            self._send(call, replica, offer.hashes, offer.num_tokens)

    def done(self, call: str) -> None:
        """Forget a call that ended."""
        self._offers.pop(call, None)
        if (sent := self._calls.pop(call, None)) is not None:
            self._loads.end(sent.replica, sent.num_tokens, sent.at)

    def in_flight(self, replica: str) -> int:
        """Calls now counted at `replica`."""
        return self._loads.in_flight(replica)

    def _saved(
        self, matched: Mapping[str, int], hashes: Sequence[int], num_known: int, num_avoided: int
    ) -> Mapping[str, float]:
        """The replicas to choose from, and how many tokens each is expected to have computed before."""
        saved: dict[str, float] = dict(matched)
        if num_known < len(hashes) and (home := self._loads.home(hashes[num_known])) and self._elsewhere:
            expected = (num_known + (len(hashes) - num_known) * self._elsewhere) * BLOCK
            saved[home] = max(saved.get(home, 0.0), expected)
        for replica in self._loads.some(_SAMPLE + num_avoided):
            saved.setdefault(replica, 0.0)
        return saved

    def _cheapest(self, saved: Mapping[str, float], avoid: Collection[str], now: float) -> list[str]:
        costs = [
            (replica in avoid, load - tokens * _PREFIX_WEIGHT, index, replica)
            for index, (replica, tokens) in enumerate(saved.items())
            if (load := self._loads.tokens(replica, now)) is not None
        ]
        return [replica for _, _, _, replica in sorted(costs)]

    def _send(self, call: str, replica: str, hashes: Sequence[int], num_tokens: int) -> None:
        self._calls[call] = _Sent(replica, num_tokens, self._clock())
        self._loads.send(replica, num_tokens)
        self._prefixes.note(hashes, replica)

    def _expire(self, now: float) -> None:
        for call in list(self._stale(now - _UNROUTED_S)):
            self.done(call)

    def _stale(self, oldest_allowed: float) -> Iterator[str]:
        for call, offer in self._offers.items():
            if offer.at >= oldest_allowed:
                return
            yield call
