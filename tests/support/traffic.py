"""Multi-turn traffic of many tenants, the same for a seed whoever answers it. Knows nothing of who does."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random

_IDS = tuple(range(150_000))
_LONGEST = 8000  # tokens of one message


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What people send. Lengths are log-normal about their medians, in tokens."""

    seconds: float  # from the first conversation to the end of the simulation
    conversations_per_s: float = 0.5  # for each replica
    tenants: int = 4  # for each replica; all conversations of one begin with its system prompt
    zipf: float = 1.0  # exponent of the tenants' popularity
    system_tokens: int = 1500
    message_tokens: int = 250
    answer_tokens: int = 200
    spread: float = 0.8  # standard deviation of a length's logarithm
    turns: float = 4.0  # mean, geometric
    think_s: float = 10.0  # mean, exponential
    burst_every_s: float = 30.0
    burst_s: float = 3.0
    burst_factor: float = 3.0  # times as many conversations begin in a burst, half of them one tenant's


class Conversation:
    """What one person sends in turn: each prompt is the one before, its answer and a new message."""

    def __init__(self, traffic: Traffic, system: tuple[int, ...], random: Random) -> None:
        self._traffic = traffic
        self._random = random
        self.turns_left = 1 + int(math.log(1.0 - random.random()) / math.log(1.0 - 1.0 / traffic.turns))
        self.prompt = system
        self.answer: tuple[int, ...] = ()

    def next_turn(self) -> None:
        """Write the next prompt, and what will be answered to it."""
        self.turns_left -= 1
        self.prompt += self.answer + _text(self._random, self._traffic.message_tokens, self._traffic.spread)
        self.answer = _text(self._random, self._traffic.answer_tokens, self._traffic.spread)

    def pause_s(self) -> float:
        """How long the person thinks about an answer."""
        return self._random.expovariate(1.0 / self._traffic.think_s)


def conversations(traffic: Traffic, num_replicas: int, seed: int) -> Iterator[tuple[float, Conversation]]:
    """When each conversation begins, and the conversation."""
    random = Random(f"traffic {seed}")
    num_tenants = traffic.tenants * num_replicas
    systems = [_text(random, traffic.system_tokens, traffic.spread) for _ in range(num_tenants)]
    popularity = list(accumulate((rank + 1) ** -traffic.zipf for rank in range(num_tenants)))
    for number, (now, in_burst) in enumerate(_beginnings(traffic, num_replicas, random)):
        [tenant] = random.choices(range(num_tenants), cum_weights=popularity)
        if in_burst and random.random() < 0.5:
            tenant = int(now / traffic.burst_every_s) * 7919 % num_tenants
        yield now, Conversation(traffic, systems[tenant], Random(f"conversation {seed} {number}"))


def _beginnings(traffic: Traffic, num_replicas: int, random: Random) -> Iterator[tuple[float, bool]]:
    """When conversations begin, and whether in a burst."""
    now = 0.0
    while now < traffic.seconds:
        in_burst = now % traffic.burst_every_s > traffic.burst_every_s - traffic.burst_s
        yield now, in_burst
        factor = traffic.burst_factor if in_burst else 1.0
        now += random.expovariate(traffic.conversations_per_s * num_replicas * factor)


def _text(random: Random, median: int, spread: float) -> tuple[int, ...]:
    length = max(1, min(int(random.lognormvariate(math.log(median), spread)), _LONGEST))
    start = random.randrange(len(_IDS) - length)
    return _IDS[start : start + length]
