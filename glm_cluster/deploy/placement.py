"""Which replica a request should go to: where its prefix was computed before, unless that one is busier by too much.

Knows prompts and replica names. Knows no Ray, asks nobody, and costs tens of microseconds.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

_PREFIX_BLOCK = 64  # tokens hashed together
_MAX_BLOCKS = 32  # of a prompt; what follows does not change the choice
_MAX_HASHES = 65536  # remembered
_HOLDERS = 4  # replicas remembered for a prefix
_REQUEST_COST = 128  # one more request on a replica weighs as much as this many tokens to compute
_UNROUTED_S = 5.0  # a choice that never became a call stops counting after this


def prefix_hashes(prompt: tuple[int, ...]) -> list[int]:
    """A hash for every whole block of the prompt, each covering everything before it."""
    hashes = []
    chained = 0
    for start in range(0, min(len(prompt) // _PREFIX_BLOCK, _MAX_BLOCKS) * _PREFIX_BLOCK, _PREFIX_BLOCK):
        chained = hash((chained, prompt[start : start + _PREFIX_BLOCK]))
        hashes.append(chained)
    return hashes


class Prefixes:
    """Which replicas were sent which prefixes, least recently used forgotten first."""

    def __init__(self, capacity: int = _MAX_HASHES) -> None:
        self._capacity = capacity
        self._holders: OrderedDict[int, tuple[str, ...]] = OrderedDict()

    def matched(self, hashes: Sequence[int]) -> Mapping[str, int]:
        """Tokens of the prompt that each replica has seen."""
        matched: dict[str, int] = {}
        for index, block in enumerate(hashes):
            holders = self._holders.get(block)
            if holders is None:
                break
            for replica in holders:
                if matched.get(replica, 0) == index * _PREFIX_BLOCK:
                    matched[replica] = (index + 1) * _PREFIX_BLOCK
        return matched

    def note(self, hashes: Sequence[int], replica: str) -> None:
        """Remember that `replica` gets this prompt."""
        for block in hashes:
            holders = self._holders.setdefault(block, (replica,))
            self._holders.move_to_end(block)
            if holders[0] != replica:
                self._holders[block] = (replica, *(r for r in holders if r != replica))[:_HOLDERS]
        while len(self._holders) > self._capacity:
            self._holders.popitem(last=False)

    def __len__(self) -> int:
        return len(self._holders)


class Placement:
    """Ranks replicas for a request, and keeps count of what it sent where."""

    def __init__(self, prefixes: Prefixes | None = None) -> None:
        self._prefixes = prefixes or Prefixes()
        self._calls: dict[str, str] = {}  # call -> replica
        self._unrouted: OrderedDict[str, float] = OrderedDict()  # calls chosen for, not yet accepted
        self._in_flight: dict[str, int] = {}

    def rank(
        self, call: str, prompt: tuple[int, ...], loads: Mapping[str, int], avoid: Sequence[str] = ()
    ) -> list[str]:
        """The replicas of `loads` (what each one says it holds), best first; the best is counted as chosen.

        A replica's load is the larger of what it says, which is a little old, and what was sent from here.
        """
        self._expire()
        self.done(call)
        hashes = prefix_hashes(prompt)
        matched = self._prefixes.matched(hashes)

        def cost(replica: str) -> tuple[bool, int]:
            load = max(loads[replica], self._in_flight.get(replica, 0))
            return replica in avoid, load * _REQUEST_COST - matched.get(replica, 0)

        ranked = sorted(loads, key=cost)
        if ranked:
            self._prefixes.note(hashes, ranked[0])
            self._choose(call, ranked[0])
            self._unrouted[call] = time.monotonic()
        return ranked

    def routed(self, call: str, replica: str) -> None:
        """Note that `replica`, which need not be the best, took the call."""
        if self._unrouted.pop(call, None) is not None and self._calls.get(call) != replica:
            self.done(call)
            self._choose(call, replica)

    def done(self, call: str) -> None:
        """Forget a call that ended."""
        self._unrouted.pop(call, None)
        if (replica := self._calls.pop(call, None)) is None:
            return
        self._in_flight[replica] -= 1
        if not self._in_flight[replica]:
            del self._in_flight[replica]

    def in_flight(self, replica: str) -> int:
        """Calls now counted at `replica`."""
        return self._in_flight.get(replica, 0)

    def _choose(self, call: str, replica: str) -> None:
        self._calls[call] = replica
        self._in_flight[replica] = self._in_flight.get(replica, 0) + 1

    def _expire(self) -> None:
        for call in list(self._stale()):
            self.done(call)

    def _stale(self) -> Iterator[str]:
        oldest_allowed = time.monotonic() - _UNROUTED_S
        for call, chosen_at in self._unrouted.items():
            if chosen_at >= oldest_allowed:
                return
            yield call
