"""One life of a tensor-parallel group: its rank actors, made in the placement group's bundles, and the line to rank 0.

Knows Ray's actors and placement groups. A group that lost a rank is not repaired: it is closed, and another one made.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Self

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from glm_cluster.config import ModelConfig
from glm_cluster.deploy.channel import Loss, Receipt, Report, ReturnAddress, Submission
from glm_cluster.deploy.courier import Courier
from glm_cluster.deploy.shards import Seat, Shard
from glm_cluster.errors import EngineUnavailable, GlmError
from glm_cluster.metrics import (
    BLOCKS,
    DRAFT_TOKENS,
    ENGINE_SUBMISSION_BATCH,
    FREE_BLOCKS,
    RUNNING,
    WAITING,
    Meters,
)
from glm_cluster.records import ReplicaLoad

logger = logging.getLogger(__name__)

_START_S = 1800.0  # actors placed, model loaded, rank 0 listening
_LOCAL = "127.0.0.1"  # rank 0 shares the replica's bundle, so its host
_LISTEN_S = 1.0
_DEATH_S = 10.0


@dataclass(frozen=True, slots=True)
class Bundles:
    """The placement group's bundles in rank order: rank 0 beside the replica, then host by host."""

    group: PlacementGroup
    order: tuple[int, ...]  # bundle of each rank
    nodes: tuple[str, ...]  # node of each rank
    num_nodes: int  # alive in the cluster

    @classmethod
    async def find(cls, group: PlacementGroup) -> Self:
        """Ask Ray where the bundles are."""
        table = await asyncio.to_thread(ray.util.placement_group_table, group)
        alive = [node for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
        nodes: dict[int, str] = table["bundles_to_node_id"]
        order = in_rank_order(nodes)
        return cls(group, order, tuple(nodes[bundle] for bundle in order), len(alive))

    def strategy(self, rank: int) -> PlacementGroupSchedulingStrategy:
        """Where Ray is to start a rank."""
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.order[rank])


def in_rank_order(nodes: dict[int, str]) -> tuple[int, ...]:
    """Bundles with bundle 0 first, then the rest of its node, then node by node: rings stay inside hosts."""
    return tuple(sorted(nodes, key=lambda bundle: (nodes[bundle] != nodes[0], nodes[bundle], bundle)))


class RankGroup:
    """The ranks of one epoch."""

    def __init__(self, ranks: list[Any], runs: list[asyncio.Task[None]], courier: Courier, meters: Meters) -> None:
        self._ranks = ranks
        self._runs = runs
        self._courier = courier
        self._meters = meters
        self._heard = asyncio.Event()
        self._heard_at = time.monotonic()
        self.steps = 0  # real steps so far
        self.load: ReplicaLoad | None = None  # None until rank 0 is ready

    @classmethod
    async def start(
        cls, config: ModelConfig, bundles: Bundles, epoch: str, meters: Meters, progress_to: ReturnAddress | None = None
    ) -> Self:
        """Make the actors, load the model and wait until rank 0 listens, or raise having left nothing.

        Each rank tells `progress_to` how far it is.
        """
        courier = Courier(_LOCAL)
        ranks = [
            ray.remote(Shard)
            .options(
                num_cpus=config.cpus_per_rank,
                num_gpus=1 if config.engine.device == "cuda" else 0,
                scheduling_strategy=bundles.strategy(rank),
            )
            .remote(_seat(config, bundles, epoch, rank, courier, progress_to=progress_to))
            for rank in range(config.engine.tp)
        ]
        group = cls(ranks, [], courier, meters)
        try:
            async with asyncio.timeout(_START_S):
                address = await ranks[0].open_store.remote()
                group._runs.extend(asyncio.create_task(_completion(rank.run.remote(address))) for rank in ranks)
                courier.start(group._take)
                await group._ready()
        except BaseException as error:
            await group.close(Loss("the group did not start", "refused"))
            if isinstance(error, RayError):
                raise EngineUnavailable(f"a rank died while it started: {error}") from error
            if isinstance(error, TimeoutError):
                raise EngineUnavailable(
                    f"the ranks did not start in {_START_S / 60:g} min; `ray status` tells if the cluster has room"
                ) from error
            raise
        return group

    async def submit(self, submission: Submission) -> Receipt | Loss:
        """Run a submission to its end."""
        return await self._courier.submit(submission)

    async def ended(self, silence_s: float) -> str:
        """Wait until a rank dies, the line to rank 0 fails, or rank 0 says nothing for `silence_s`; the reason."""
        parts = {run: f"rank {rank} of {len(self._runs)} died" for rank, run in enumerate(self._runs)}
        parts |= dict.fromkeys(self._courier.tasks, "the line to rank 0 failed")
        while True:
            done, _ = await asyncio.wait(parts, timeout=_LISTEN_S, return_when=asyncio.FIRST_COMPLETED)
            if done:
                part = done.pop()
                logger.error("%s", parts[part], exc_info=None if part.cancelled() else part.exception())
                return parts[part]
            if time.monotonic() - self._heard_at > silence_s:
                return f"a step took longer than {silence_s:g} s"

    async def close(self, loss: Loss) -> None:
        """End every open call with `loss`, kill every rank, and wait until they are gone."""
        await self._courier.close(loss)
        for rank in self._ranks:
            ray.kill(rank)
        if self._runs:
            await asyncio.wait(self._runs, timeout=_DEATH_S)

    async def _ready(self) -> None:
        """Wait for rank 0's first report; raise what ended a rank before, an error of ours rather than its echo."""
        heard = asyncio.create_task(self._heard.wait())
        done, _ = await asyncio.wait([heard, *self._runs], return_when=asyncio.FIRST_COMPLETED)
        heard.cancel()
        causes = [cause for run in done - {heard} if (cause := run.exception()) is not None]
        if causes:
            raise next((cause for cause in causes if isinstance(cause, GlmError)), causes[0])

    def _take(self, report: Report) -> None:
        self._heard_at = time.monotonic()
        self._heard.set()
        self.steps = report.steps
        before, self.load = self.load, report.load
        report_load(self._meters, before, report.load)
        for batch in report.batches:
            self._meters.observe(ENGINE_SUBMISSION_BATCH, batch)


def report_load(meters: Meters, before: ReplicaLoad | None, load: ReplicaLoad) -> None:
    """Show what an engine holds, and count what it drafted since the load `before`, or since it was made."""
    meters.gauge(WAITING, load.num_waiting)
    meters.gauge(RUNNING, load.num_running)
    meters.gauge(FREE_BLOCKS, load.num_free_blocks)
    meters.gauge(BLOCKS, load.num_blocks)
    drafted, accepted = (0, 0) if before is None else (before.num_drafted, before.num_accepted)
    meters.count(DRAFT_TOKENS, load.num_drafted - drafted, {"kind": "drafted"})
    meters.count(DRAFT_TOKENS, load.num_accepted - accepted, {"kind": "accepted"})


def _seat(
    config: ModelConfig,
    bundles: Bundles,
    epoch: str,
    rank: int,
    courier: Courier,
    *,
    progress_to: ReturnAddress | None,
) -> Seat:
    beside = math.ceil(config.max_replicas / bundles.num_nodes)  # groups that may share a host
    return Seat(
        engine=config.engine,
        rank=rank,
        host_ranks=Counter(bundles.nodes)[bundles.nodes[rank]] * beside,
        epoch=epoch,
        key=courier.seal.key,
        orders=courier.orders_endpoint,
        reports=courier.reports_endpoint,
        progress_to=progress_to,
    )


async def _completion(ref: Any) -> None:
    """Wait for an actor's `run`; raise what ended it, as one of our errors where it is one."""
    try:
        await ref
    except RayTaskError as error:
        if isinstance(error.cause, GlmError):
            raise error.cause from None
        raise
