"""One run of `bench serve`: warm up, then rounds of load on one server, or on two by turns.

Knows clients, loads and summaries. Refuses to know arguments and how results are shown.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import TypeAlias

from glm_cluster.bench.against import Comparison, alternate, compare
from glm_cluster.bench.grpc_client import SCHEME, open_grpc_client
from glm_cluster.bench.http_client import open_http_client
from glm_cluster.bench.load import Arrivals, Client, arrival_offsets, closed_loop, open_loop
from glm_cluster.bench.order import Order
from glm_cluster.bench.prompts import Prompt
from glm_cluster.bench.report import Side
from glm_cluster.bench.summary import Slo, Summary, summarise
from glm_cluster.bench.timing import Timing
from glm_cluster.errors import ConfigError, EngineUnavailable

PromptsOf: TypeAlias = Callable[[int], list[Prompt]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server, and what each of its requests asks."""

    url: str
    order: Order

    def connect(self) -> AbstractAsyncContextManager[Client]:
        """A client for the URL's scheme."""
        if self.url.startswith(SCHEME):
            return open_grpc_client(self.url, self.order)
        if self.url.startswith(("http://", "https://")):
            return open_http_client(self.url, self.order)
        raise ConfigError(f"{self.url} is no http://, https:// or grpc:// address; give one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """An open loop where a rate is given, else a closed one."""

    num_clients: int = 4
    rate_per_s: float | None = None
    arrivals: Arrivals = "poisson"
    seed: int = 0

    async def apply(self, client: Client, prompts: Sequence[Prompt]) -> list[Timing]:
        """Send every prompt and wait for all answers."""
        if self.rate_per_s is None:
            return await closed_loop(client, prompts, self.num_clients)
        offsets = arrival_offsets(len(prompts), self.rate_per_s, self.arrivals, self.seed)
        return await open_loop(client, prompts, offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was found."""

    sides: tuple[Side, ...]
    comparison: Comparison | None


async def measure(
    ours: Target, peer: Target | None, load: Load, slo: Slo, *, num_rounds: int, prompts_of: PromptsOf, warmup: int
) -> Run:
    """Measure one server, or two by turns; `prompts_of` a round gives both the same, and each round others."""
    targets = {"ours": ours} | ({"peer": peer} if peer is not None else {})
    kept: dict[str, list[tuple[Timing, ...]]] = {name: [] for name in targets}
    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(target.connect()) for name, target in targets.items()}
        for name, client in clients.items():
            await _warm(client, targets[name].url, prompts_of(-1)[:warmup])

        async def one_round(name: str, number: int) -> Summary:
            timings = await load.apply(clients[name], prompts_of(number))
            kept[name].append(tuple(timings))
            return summarise(timings, slo)

        if peer is None:
            rounds = {"ours": [await one_round("ours", number) for number in range(num_rounds)]}
        else:
            found = await alternate(num_rounds, one_round)
            rounds = dict(zip(("ours", "peer"), found, strict=True))
    sides = tuple(
        Side(name=targets[name].url, rounds=tuple(rounds[name]), timings=tuple(kept[name])) for name in targets
    )
    return Run(sides=sides, comparison=None if peer is None else compare(rounds["ours"], rounds["peer"]))


async def _warm(client: Client, url: str, prompts: Sequence[Prompt]) -> None:
    """Let the first requests pay for imports and caches, and be the ones refused."""
    for timing in await closed_loop(client, prompts, 1):
        if timing.error is not None:
            raise EngineUnavailable(f"{url} does not answer a request like those of this run: {timing.error}")
