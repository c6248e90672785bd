"""Continuous batching: plan, execute, commit. Owned by one thread; knows token ids, never text, sockets or Ray."""

from typing import Self

from glm_cluster.config import EngineConfig
from glm_cluster.engine.blocks import BlockPool
from glm_cluster.engine.executor import Executor, LocalExecutor
from glm_cluster.engine.memory import KvLimits
from glm_cluster.engine.runner import ModelRunner
from glm_cluster.engine.scheduler import Scheduler
from glm_cluster.model.checkpoint import Progress
from glm_cluster.model.ranks import Ranks, resolve_device
from glm_cluster.records import GenerationRequest, ReplicaLoad, TokenEvent


class Engine:
    """Requests in, token events out. Each request ends in exactly one event with `finish` set."""

    def __init__(self, scheduler: Scheduler, executor: Executor) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._num_steps = 0

    @classmethod
    def assemble(cls, config: EngineConfig, limits: KvLimits, executor: Executor) -> Self:
        """Put a scheduler with the group's limits over an executor."""
        scheduler = Scheduler(
            BlockPool(limits.num_blocks),
            block_tokens=config.block_tokens,
            max_running=config.max_running,
            max_waiting=config.max_waiting,
            step_tokens=config.step_tokens,
            max_model_len=limits.max_model_len,
        )
        return cls(scheduler, executor)

    @property
    def has_work(self) -> bool:
        """Whether `step` would do or say anything."""
        return self._scheduler.has_work

    @property
    def num_steps(self) -> int:
        """Forward passes so far: every rank of the group took part in each."""
        return self._num_steps

    def add(self, request: GenerationRequest) -> None:
        """Queue a request; InvalidRequest if it could never run here, Overloaded if too many wait."""
        self._scheduler.add(request)

    def cancel(self, request_id: str, attempt: int) -> None:
        """Forget a request; its blocks are free before the next step. Unknown ids are ignored."""
        self._scheduler.cancel(request_id, attempt)

    def step(self) -> list[TokenEvent]:
        """Run one forward pass over whatever is most due; no events when idle."""
        plan = self._scheduler.plan()
        if plan is None:
            return self._scheduler.take_events()
        output = self._executor.execute(plan)
        self._num_steps += 1
        return self._scheduler.commit(plan, output)

    def load(self) -> ReplicaLoad:
        """Queue lengths and free blocks."""
        return self._scheduler.load()

    def check(self) -> None:
        """Assert the invariants; for tests, between steps."""
        self._scheduler.check()


def open_engine(config: EngineConfig, *, on_progress: Progress | None = None) -> Engine:
    """An engine of one rank in this process."""
    runner = ModelRunner.load(config, Ranks.single(resolve_device(config.device)), on_progress=on_progress)
    return Engine.assemble(config, runner.limits, LocalExecutor(runner))
