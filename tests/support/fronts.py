"""Ways to choose a replica, as one front process does: with its own memory and reports that are a little old."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from glm_cluster.deploy.placement import Placement

_FORGET_S = 10.0  # Serve asks a replica whose queue length it has not heard for this long


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a front begins with."""

    num_replicas: int
    num_fronts: int
    random: Random
    ask: Callable[[int], int]  # how many requests a replica holds right now
    clock: Callable[[], float]


class Front(Protocol):
    """What a policy is asked and told. `held` is how many requests a replica holds."""

    def choose(self, call: str, prompt: tuple[int, ...]) -> int: ...

    def accepted(self, call: str, replica: int, held: int) -> None: ...

    def ended(self, call: str, replica: int) -> None: ...

    def reported(self, replica: int, held: int, waiting: int) -> None: ...


class Ours:
    """The real `Placement`, told what `GlmRequestRouter` tells it."""

    def __init__(self, around: Surroundings) -> None:
        self._placement = Placement(num_fronts=around.num_fronts, random=around.random, clock=around.clock)
        self._names = [f"replica{index:04d}" for index in range(around.num_replicas)]
        self._index = {name: index for index, name in enumerate(self._names)}
        for name in self._names:
            self._placement.report(name, 0)

    def choose(self, call: str, prompt: tuple[int, ...]) -> int:
        return self._index[self._placement.rank(call, prompt)[0]]

    def accepted(self, call: str, replica: int, held: int) -> None:
        self._placement.correct(self._names[replica], held)
        self._placement.routed(call, self._names[replica])

    def ended(self, call: str, replica: int) -> None:
        self._placement.done(call)

    def reported(self, replica: int, held: int, waiting: int) -> None:
        self._placement.report(self._names[replica], held, waiting)


class PowerOfTwo:
    """Serve's default: of two at random the one whose queue was shorter when last heard of."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._heard: dict[int, tuple[int, float]] = {}

    def choose(self, call: str, prompt: tuple[int, ...]) -> int:
        pair = self._around.random.sample(range(self._around.num_replicas), 2)
        best = min(pair, key=self._queue)
        self._heard[best] = (self._queue(best) + 1, self._around.clock())
        return best

    def accepted(self, call: str, replica: int, held: int) -> None:
        self._heard[replica] = (held, self._around.clock())

    def ended(self, call: str, replica: int) -> None:
        held, heard_at = self._heard[replica]
        self._heard[replica] = (max(held - 1, 0), heard_at)

    def reported(self, replica: int, held: int, waiting: int) -> None:
        """Serve's default does not look at what replicas report."""

    def _queue(self, replica: int) -> int:
        held, heard_at = self._heard.get(replica, (0, -_FORGET_S))
        return held if self._around.clock() - heard_at < _FORGET_S else self._around.ask(replica)


class RoundRobin:
    """Each in turn, from anywhere."""

    def __init__(self, around: Surroundings) -> None:
        self._num_replicas = around.num_replicas
        self._last = around.random.randrange(around.num_replicas)

    def choose(self, call: str, prompt: tuple[int, ...]) -> int:
        self._last = (self._last + 1) % self._num_replicas
        return self._last

    def accepted(self, call: str, replica: int, held: int) -> None:
        """Nothing to remember."""

    def ended(self, call: str, replica: int) -> None:
        """Nothing to remember."""

    def reported(self, replica: int, held: int, waiting: int) -> None:
        """Nothing to remember."""


class LeastLoaded:
    """The one that holds least, by what was last heard and what was sent there since; among equals any."""

    def __init__(self, around: Surroundings) -> None:
        self._random = around.random
        self._held = [0] * around.num_replicas

    def choose(self, call: str, prompt: tuple[int, ...]) -> int:
        least = min(self._held)
        best = self._random.choice([replica for replica, held in enumerate(self._held) if held == least])
        self._held[best] += 1
        return best

    def accepted(self, call: str, replica: int, held: int) -> None:
        self._held[replica] = held

    def ended(self, call: str, replica: int) -> None:
        self._held[replica] = max(self._held[replica] - 1, 0)

    def reported(self, replica: int, held: int, waiting: int) -> None:
        self._held[replica] = held


POLICIES: dict[str, Callable[[Surroundings], Front]] = {
    "ours": Ours,
    "power of two": PowerOfTwo,
    "round robin": RoundRobin,
    "least loaded": LeastLoaded,
}
