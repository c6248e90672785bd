"""Continuous batching: plan, execute, commit. Owned by one thread; knows token ids, never text, sockets or Ray."""

from typing import Self

from glm_cluster.config import EngineConfig
from glm_cluster.engine.blocks import BlockPool
from glm_cluster.engine.constraint import Constrain
from glm_cluster.engine.executor import Executor, LocalExecutor
from glm_cluster.engine.memory import KvLimits
from glm_cluster.engine.runner import ModelRunner
from glm_cluster.engine.scheduler import Failure, Scheduler
from glm_cluster.engine.sequence import Request
from glm_cluster.errors import InvalidRequest
from glm_cluster.model.checkpoints.checkpoint import ReadProgress
from glm_cluster.model.ranks import Ranks, resolve_device
from glm_cluster.records import EncodeRequest, ReplicaLoad, Task, TokenEvent

_PATIENCE_S = 0.01  # with a grammar that is being compiled, when there is nothing else to do


class Engine:
    """Requests in, token events out. Each request ends in exactly one event with `finish` set, or in a failure."""

    def __init__(self, scheduler: Scheduler, executor: Executor, task: Task) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._task = task
        self._num_steps = 0

    @classmethod
    def assemble(
        cls, config: EngineConfig, limits: KvLimits, executor: Executor, constrain: Constrain | None = None
    ) -> Self:
        """Put a scheduler with the group's limits over an executor. Without `constrain`, grammars are refused."""
        scheduler = Scheduler(
            BlockPool(limits.num_blocks),
            block_tokens=config.block_tokens,
            max_running=config.max_running,
            max_waiting=config.max_waiting,
            step_tokens=config.step_tokens,
            max_model_len=limits.max_model_len,
            speculative_tokens=config.speculative_tokens,
            constrain=constrain,
        )
        return cls(scheduler, executor, config.task)

    @property
    def has_work(self) -> bool:
        """Whether `step` would do or say anything."""
        return self._scheduler.has_work

    @property
    def num_steps(self) -> int:
        """Forward passes so far: every rank of the group took part in each."""
        return self._num_steps

    def add(self, request: Request) -> None:
        """Queue a request; InvalidRequest if it could never run here, Overloaded if too many wait."""
        if isinstance(request, EncodeRequest) == (self._task == "generate"):
            raise InvalidRequest(f"this model is served for {self._task}; send the request to another", param="model")
        self._scheduler.add(request)

    def cancel(self, request_id: str, attempt: int) -> None:
        """Forget a request; its blocks are free before the next step. Unknown ids are ignored."""
        self._scheduler.cancel(request_id, attempt)

    def step(self) -> list[TokenEvent]:
        """Run one forward pass over whatever is most due; no events when idle.

        After a pass that raised, the next one begins its sequences anew.
        """
        plan = self._scheduler.plan()
        if plan is None:
            self._scheduler.wait(_PATIENCE_S)
            return self._scheduler.take_events()
        output = self._executor.execute(plan)
        self._num_steps += 1
        return self._scheduler.commit(plan, output)

    def take_failures(self) -> list[Failure]:
        """Requests that ended without a last event since the last call: ask after each step."""
        return self._scheduler.take_failures()

    def load(self) -> ReplicaLoad:
        """Queue lengths and free blocks."""
        return self._scheduler.load()

    def check(self) -> None:
        """Assert the invariants; for tests, between steps."""
        self._scheduler.check()


def open_engine(
    config: EngineConfig,
    *,
    on_read: ReadProgress | None = None,
    unused_token_ids: tuple[tuple[int, int], ...] = (),
    constrain: Constrain | None = None,
) -> Engine:
    """An engine of one rank in this process. Ids in the half-open ranges of `unused_token_ids` are never sampled."""
    ranks = Ranks.single(resolve_device(config.device))
    runner = ModelRunner.load(config, ranks, on_read=on_read, unused_token_ids=unused_token_ids)
    return Engine.assemble(config, runner.limits, LocalExecutor(runner), constrain)
