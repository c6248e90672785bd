"""A tensor-parallel group whose ranks are threads of this process: real collectives, nothing to clean up.

Slower than processes and good for comparing numbers, never for serving.
"""

from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from glm_cluster.config import EngineConfig
from glm_cluster.engine.engine import Engine
from glm_cluster.engine.heads import IdRanges
from glm_cluster.engine.plan import StepOutput, StepPlan
from glm_cluster.engine.runner import ModelRunner
from glm_cluster.model.ranks import Ranks

T = TypeVar("T")


def on_every_rank(size: int, work: Callable[[int], T]) -> list[T]:
    """Call work(rank) in a thread a rank; the results by rank, or the first error as soon as it happens."""
    if size == 1:
        return [work(0)]
    pool = ThreadPoolExecutor(size)
    calls = [pool.submit(work, rank) for rank in range(size)]
    done, _ = wait(calls, return_when=FIRST_EXCEPTION)
    pool.shutdown(wait=False)  # ranks that wait for one that failed are left to their own deadline
    for call in done:
        call.result()
    return [call.result() for call in calls]


def join_group(size: int) -> list[Ranks]:
    """A group of `size` threads, by rank."""
    from torch.distributed import HashStore  # type: ignore[attr-defined]

    store = HashStore()
    return on_every_rank(size, lambda rank: Ranks.join(rank=rank, size=size, store=store))


class ThreadGroup:
    """An `Executor` over thread ranks."""

    def __init__(self, config: EngineConfig, ranks: list[Ranks], unused_token_ids: IdRanges) -> None:
        self._size = len(ranks)
        self._runners = on_every_rank(
            self._size,
            lambda rank: ModelRunner.load(
                config, ranks[rank], host_ranks=self._size, unused_token_ids=unused_token_ids
            ),
        )

    def engine(self, config: EngineConfig) -> Engine:
        """An engine of its own, with an empty prefix cache, over the group's weights."""
        return Engine.assemble(config, self._runners[0].limits, self)

    def execute(self, plan: StepPlan) -> StepOutput:
        """Run a plan on every rank; what rank 0 sampled."""
        return on_every_rank(self._size, lambda rank: self._runners[rank].execute(plan))[0]
