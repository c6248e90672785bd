"""GlmReplica: what Serve sees of one tensor-parallel group. It keeps a group of ranks alive and speaks for it.

An asyncio supervisor that never touches torch or CUDA. When a rank dies every open call ends with a Loss (the ingress
re-enters elsewhere), the group is killed and a new one made in the same bundles, under a new epoch.
"""

import asyncio
import logging
import time
from dataclasses import asdict
from itertools import count
from uuid import uuid4

import ray
from ray import serve

from glm_cluster.config import ModelConfig
from glm_cluster.deploy.backoff import pause_s
from glm_cluster.deploy.channel import Loss, Receipt, Request, ReturnAddress, Submission
from glm_cluster.deploy.group import Bundles, RankGroup
from glm_cluster.deploy.meters import RayMeters
from glm_cluster.errors import EngineUnavailable, GlmError
from glm_cluster.records import EncodeRequest, GenerationRequest, SamplingParams, Task

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0  # between attempts to make a group
_RESTART_S = 900.0  # a group that is not back by then is for Serve to replace, with its replica
_LOOK_S = 0.02  # at the steps that other requests cause
_ONE_TOKEN = SamplingParams(max_tokens=1, temperature=0.0)


class GlmReplica:
    """One replica: one group at a time, epoch after epoch."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: ModelConfig, progress_to: ReturnAddress | None = None
    ) -> None:
        self._config = config
        self._progress_to = progress_to
        self._name = serve.get_replica_context().replica_id.unique_id
        self._meters = RayMeters()
        self._probes = count()
        self._down_since = 0.0  # when the last group ended
        self._proven_steps = 0  # steps of the group at the last successful health check
        group = await self._new_group()
        self._group: RankGroup | None = group
        self._supervisor = asyncio.create_task(self._supervise(group))

    async def run(self, submission: Submission) -> Receipt | Loss:
        """Run a submission to its end; a generation's tokens themselves go to its return address."""
        if self._group is None:
            return Loss("the group is being restarted", "refused", self._name)
        return await self._group.submit(submission)

    async def check_health(self) -> None:
        """Raise where Serve had better replace this replica: its group makes no step, or is not back in time.

        A restart under way is no reason: a replica that Serve makes has the same model to load.
        """
        if (group := self._group) is not None:
            await self._prove(group)
        elif time.monotonic() - self._down_since > _RESTART_S:
            raise EngineUnavailable(f"{self._name}: no group for {_RESTART_S / 60:g} min")

    async def probe(self, step: bool) -> bool:
        """Whether there is an engine here; with `step`, whether all its ranks have made a step since the last probe.

        An engine that is here made its first step before it was shown to anyone.
        """
        if (group := self._group) is None:
            return False
        if not step:
            return True
        try:
            await self._prove(group)
        except GlmError:
            return False
        return True

    async def record_routing_stats(self) -> dict[str, object]:
        """What the routers know of this replica, as of now."""
        group = self._group
        if group is None or group.load is None:
            return {"serving": False}
        return {"serving": True, **asdict(group.load)}

    async def __del__(self) -> None:
        """Called by Serve on an orderly stop; after any other end Ray kills the ranks with their owner."""
        self._supervisor.cancel()
        if self._group is not None:
            await self._group.close(Loss("the replica was stopped", "moved", self._name))

    async def _new_group(self) -> RankGroup:
        bundles = await Bundles.find(ray.util.get_current_placement_group())
        group = await RankGroup.start(self._config, bundles, uuid4().hex[:8], self._meters, self._progress_to)
        self._proven_steps = 0
        try:
            await self._step(group)
        except BaseException:
            await group.close(Loss("the first step failed", "refused", self._name))
            raise
        return group

    async def _supervise(self, group: RankGroup) -> None:
        while True:
            reason = await group.ended(self._config.engine.step_deadline_s)
            logger.warning("%s; %s makes a new group", reason, self._name)
            self._group, self._down_since = None, time.monotonic()
            self._group = group = await self._replace(group, Loss(reason, "died", self._name))

    async def _replace(self, group: RankGroup, loss: Loss) -> RankGroup:
        """A new group in the place of a lost one, however often it takes, whatever goes wrong."""
        for attempt in count():
            try:
                await group.close(loss)
                return await self._new_group()
            except Exception:  # the edge of the process: nobody awaits the supervisor
                logger.exception("%s could not make a group; it tries again", self._name)
            await asyncio.sleep(pause_s(attempt, _FIRST_PAUSE_S, _LONGEST_PAUSE_S))
        raise AssertionError("count() does not end")

    async def _prove(self, group: RankGroup) -> None:
        """Raise unless every rank took part in a step since the last time; make it take one if need be."""
        if group.steps <= self._proven_steps:
            await self._step(group)
        self._proven_steps = group.steps

    async def _step(self, group: RankGroup) -> None:
        """Run a request of one step through every rank, or be content with any step that other requests caused."""
        seen = group.steps
        request = probe_request(self._config.engine.task, f"probe-{next(self._probes)}")
        probe = asyncio.create_task(group.submit(Submission(request, None)))
        deadline = asyncio.get_running_loop().time() + self._config.engine.step_deadline_s
        try:
            while not probe.done() and group.steps <= seen:
                await asyncio.wait([probe], timeout=_LOOK_S)
                if asyncio.get_running_loop().time() > deadline:
                    raise EngineUnavailable(f"no step in {self._config.engine.step_deadline_s:g} s")
            if probe.done() and isinstance(loss := probe.result(), Loss):
                raise EngineUnavailable(loss.reason)
        finally:
            probe.cancel()


def probe_request(task: Task, request_id: str) -> Request:
    """The least that an engine of `task` can be asked for."""
    if task == "generate":
        return GenerationRequest(request_id=request_id, prompt=(0,), sampling=_ONE_TOKEN)
    return EncodeRequest(request_id=request_id, prompt=(0,), pooling="last")
