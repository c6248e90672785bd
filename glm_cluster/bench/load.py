"""When requests are sent: by clients that wait for their answers, or by a clock that waits for nobody.

Knows clients by their protocol. Refuses to know wires and what a prompt is.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

from glm_cluster.bench.prompts import Prompt
from glm_cluster.bench.timing import Timing

Arrivals: TypeAlias = Literal["poisson", "fixed"]


class Client(Protocol):
    """Who asks one server. A failed request is a timing with an error, never a raised one."""

    async def ask(self, prompt: Prompt, due_s: float) -> Timing: ...


async def closed_loop(client: Client, prompts: Sequence[Prompt], num_clients: int) -> list[Timing]:
    """Ask every prompt, in turn, never more than `num_clients` at a time."""
    left = iter(prompts)

    async def one() -> list[Timing]:
        return [await client.ask(prompt, time.perf_counter()) for prompt in left]

    rows = await asyncio.gather(*(one() for _ in range(num_clients)))
    return [timing for row in rows for timing in row]


async def open_loop(client: Client, prompts: Sequence[Prompt], offsets_s: Sequence[float]) -> list[Timing]:
    """Ask each prompt at its offset from now, however many are still unanswered."""
    origin = time.perf_counter()

    async def one(prompt: Prompt, offset_s: float) -> Timing:
        due_s = origin + offset_s
        await asyncio.sleep(due_s - time.perf_counter())
        return await client.ask(prompt, due_s)

    return await asyncio.gather(*map(one, prompts, offsets_s))


def arrival_offsets(count: int, rate_per_s: float, arrivals: Arrivals, seed: int) -> tuple[float, ...]:
    """Seconds from the start at which to send; the first at 0. The same seed gives the same times."""
    draw = random.Random(seed)
    offsets, now = [], 0.0
    for _ in range(count):
        offsets.append(now)
        now += draw.expovariate(rate_per_s) if arrivals == "poisson" else 1 / rate_per_s
    return tuple(offsets)
