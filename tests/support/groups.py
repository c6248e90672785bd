"""A tensor-parallel group whose ranks are threads of this process: real collectives, no process to clean up."""

import threading
from collections.abc import Callable
from typing import Any

from torch.distributed import HashStore

from glm_cluster.config import EngineConfig
from glm_cluster.engine.engine import Engine
from glm_cluster.engine.plan import StepOutput, StepPlan
from glm_cluster.engine.runner import ModelRunner
from glm_cluster.model.ranks import Backend, Ranks


def on_every_rank(size: int, work: Callable[[int], Any]) -> list[Any]:
    """Call work(rank) in a thread per rank; re-raise the first error; the results by rank."""
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(rank)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    assert not any(t.is_alive() for t in threads), "a rank hangs in a collective"
    return results


def join_threads(size: int, ranks_class: type[Ranks] = Ranks, backend: Backend | None = None) -> list[Ranks]:
    """A group of `size` threads."""
    store = HashStore()
    return on_every_rank(size, lambda rank: ranks_class.join(rank=rank, size=size, store=store, backend=backend))


class ThreadGroup:
    """An Executor over thread ranks; every plan crosses the wire format to the ranks above 0."""

    def __init__(self, config: EngineConfig, ranks: list[Ranks]) -> None:
        self._size = len(ranks)
        self.runners: list[ModelRunner] = on_every_rank(
            self._size, lambda rank: ModelRunner.load(config, ranks[rank], host_ranks=self._size)
        )

    def execute(self, plan: StepPlan) -> StepOutput:
        arrived = StepPlan.unpack(plan.pack())
        assert arrived == plan
        outputs = on_every_rank(self._size, lambda rank: self.runners[rank].execute(arrived if rank else plan))
        assert outputs[1:] == [StepOutput()] * (self._size - 1)
        return outputs[0]


def open_group(config: EngineConfig, size: int, ranks_class: type[Ranks] = Ranks) -> tuple[Engine, list[Ranks]]:
    """An engine over a thread group."""
    ranks = join_threads(size, ranks_class)
    group = ThreadGroup(config, ranks)
    return Engine.assemble(config, group.runners[0].limits, group), ranks
