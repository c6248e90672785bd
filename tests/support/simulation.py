"""A fleet of simulated replicas behind several fronts, event by event: what a policy makes of a traffic.

Knows time, queues and prefix caches. Refuses to know how a front chooses. A replica takes requests in order of arrival
while it has a free slot, computes one prompt at a time but for what its cache holds, and decodes all it has begun, the
slower the more there are.
"""

import heapq
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random
from statistics import fmean, pstdev

from support.fronts import Front, Surroundings
from support.traffic import Conversation, Traffic, conversations


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The replicas and what stands before them. A client's next turn comes through any front."""

    replicas: int
    fronts: int
    prefill_tokens_per_s: float = 6000.0
    step_s: float = 0.025  # of decoding, with nothing to decode
    step_s_per_sequence: float = 0.00025
    max_running: int = 48
    block_tokens: int = 64
    cache_blocks: int = 4096  # 262,144 tokens: 10 GiB of glm-4-9b
    report_period_s: float = 1.0
    report_delay_s: float = 0.2


@dataclass(slots=True)
class Tally:
    """What happened since counting began."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    queueing_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    computing_s: Counter[int] = field(default_factory=Counter)  # by replica
    unevenness: list[float] = field(default_factory=list)  # of the requests held: deviation over mean, each second


@dataclass(frozen=True, slots=True)
class Turn:
    """One request on its way."""

    call: str
    conversation: Conversation
    blocks: Sequence[int]
    front: Front
    replica: int
    sent_at: float


class Cache:
    """A replica's prefix cache: blocks by the hash of all up to their end, least recently used forgotten first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def held(self, blocks: Sequence[int]) -> int:
        """How many blocks from the beginning are there."""
        return next((index for index, block in enumerate(blocks) if block not in self._blocks), len(blocks))

    def take(self, blocks: Sequence[int]) -> None:
        """Hold these, the first of them longest."""
        for block in reversed(blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)


class Replica:
    """One engine."""

    def __init__(self, index: int, fleet: Fleet, simulation: "Simulation") -> None:
        self._index = index
        self._fleet = fleet
        self._simulation = simulation
        self._cache = Cache(fleet.cache_blocks)
        self._waiting: deque[Turn] = deque()
        self._computing = False
        self._running = 0

    @property
    def waiting(self) -> int:
        """Requests not begun."""
        return len(self._waiting)

    @property
    def held(self) -> int:
        """Requests inside."""
        return len(self._waiting) + self._computing + self._running

    def take(self, turn: Turn) -> None:
        """A request arrives."""
        self._waiting.append(turn)
        self._begin()

    def _begin(self) -> None:
        if self._computing or not self._waiting or self._running >= self._fleet.max_running:
            return
        turn, tally = self._waiting.popleft(), self._simulation.tally
        num_tokens = len(turn.conversation.prompt)
        num_cached = self._cache.held(turn.blocks) * self._fleet.block_tokens
        seconds = (num_tokens - num_cached) / self._fleet.prefill_tokens_per_s
        tally.prompt_tokens += num_tokens
        tally.cached_tokens += num_cached
        tally.queueing_s.append(self._simulation.now - turn.sent_at)
        tally.computing_s[self._index] += seconds
        self._computing = True
        self._simulation.after(seconds, partial(self._computed, turn))

    def _computed(self, turn: Turn) -> None:
        self._simulation.tally.first_token_s.append(self._simulation.now - turn.sent_at)
        self._cache.take(turn.blocks)
        self._computing = False
        self._running += 1
        step_s = self._fleet.step_s + self._fleet.step_s_per_sequence * self._running
        self._simulation.after(step_s * len(turn.conversation.answer), partial(self._ended, turn))
        self._begin()

    def _ended(self, turn: Turn) -> None:
        self._running -= 1
        self._simulation.ended(turn)
        self._begin()


class Simulation:
    """One policy before one fleet. Equal arguments give equal figures."""

    def __init__(
        self, fleet: Fleet, traffic: Traffic, policy: Callable[[Surroundings], Front], *, seed: int, warm_up_s: float
    ) -> None:
        self.now = 0.0
        self.tally = Tally()
        self._fleet = fleet
        self._ends_at, self._warm_up_s = traffic.seconds, warm_up_s
        self._random = Random(f"fleet {seed}")
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serials, self._calls = count(), count()
        self._replicas = [Replica(index, fleet, self) for index in range(fleet.replicas)]
        self._fronts = [policy(self._around(f"front {seed} {number}")) for number in range(fleet.fronts)]
        self._arrivals = conversations(traffic, fleet.replicas, seed)

    def run(self) -> dict[str, float]:
        """Play it to its end, and say what came of all but the warm-up."""
        for index in range(self._fleet.replicas):
            self.after(self._random.random() * self._fleet.report_period_s, partial(self._report, index))
        self.after(self._warm_up_s, self._begin_to_count)
        self._await_arrival()
        while self._events and self._events[0][0] < self._ends_at:
            self.now, _, event = heapq.heappop(self._events)
            event()
        return self._figures()

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Let something happen."""
        heapq.heappush(self._events, (self.now + seconds, next(self._serials), event))

    def ended(self, turn: Turn) -> None:
        """A turn was answered; the person thinks, then goes on or leaves."""
        turn.front.ended(turn.call, turn.replica)
        if turn.conversation.turns_left:
            self.after(turn.conversation.pause_s(), partial(self._send, turn.conversation, turn.blocks))

    def _around(self, seed: str) -> Surroundings:
        return Surroundings(
            num_replicas=self._fleet.replicas,
            num_fronts=self._fleet.fronts,
            random=Random(seed),
            ask=lambda replica: self._replicas[replica].held,
            clock=lambda: self.now,
        )

    def _await_arrival(self) -> None:
        if (arrival := next(self._arrivals, None)) is not None:
            begins_at, conversation = arrival
            self.after(begins_at - self.now, partial(self._arrive, conversation))

    def _arrive(self, conversation: Conversation) -> None:
        self._send(conversation, ())
        self._await_arrival()

    def _send(self, conversation: Conversation, known_blocks: Sequence[int]) -> None:
        conversation.next_turn()
        front = self._random.choice(self._fronts)
        call = str(next(self._calls))
        index = front.choose(call, conversation.prompt)
        blocks = _extended(known_blocks, conversation.prompt, self._fleet.block_tokens)
        self._replicas[index].take(Turn(call, conversation, blocks, front, index, self.now))
        front.accepted(call, index, self._replicas[index].held)

    def _report(self, index: int) -> None:
        replica = self._replicas[index]
        self.after(self._fleet.report_delay_s, partial(self._tell, index, replica.held, replica.waiting))
        self.after(self._fleet.report_period_s, partial(self._report, index))

    def _tell(self, index: int, held: int, waiting: int) -> None:
        for front in self._fronts:
            front.reported(index, held, waiting)

    def _begin_to_count(self) -> None:
        self.tally = Tally()
        self._look()

    def _look(self) -> None:
        held = [replica.held for replica in self._replicas]
        self.tally.unevenness.append(pstdev(held) / max(fmean(held), 1e-9))
        self.after(1.0, self._look)

    def _figures(self) -> dict[str, float]:
        tally, queueing, first = self.tally, sorted(self.tally.queueing_s), sorted(self.tally.first_token_s)
        computing = [tally.computing_s[index] for index in range(self._fleet.replicas)]
        figures = {
            "requests": len(queueing),
            "prefix_hit_rate": tally.cached_tokens / tally.prompt_tokens,
            "queueing_p50_s": _percentile(queueing, 0.5),
            "queueing_p99_s": _percentile(queueing, 0.99),
            "first_token_p50_s": _percentile(first, 0.5),
            "first_token_p99_s": _percentile(first, 0.99),
            "prefill_utilisation": fmean(computing) / (self._ends_at - self._warm_up_s),
            "busiest_replica_over_mean": max(computing) / fmean(computing),
            "held_deviation_over_mean": fmean(tally.unevenness),
        }
        return {name: round(value, 4) for name, value in figures.items()}


def _extended(known: Sequence[int], prompt: tuple[int, ...], block_tokens: int) -> Sequence[int]:
    """The hash of each whole block of the prompt, of which `known` are the first."""
    blocks = list(known)
    for start in range(len(blocks) * block_tokens, len(prompt) - block_tokens + 1, block_tokens):
        blocks.append(hash((blocks[-1] if blocks else 0, prompt[start : start + block_tokens])))
    return blocks


def _percentile(values: Sequence[float], share: float) -> float:
    """The least value that so large a share does not exceed."""
    return values[max(0, math.ceil(share * len(values)) - 1)]
