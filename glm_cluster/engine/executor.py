"""Who runs a plan: this process alone, or a group of ranks (see `deploy.shards`)."""

from typing import Protocol

from glm_cluster.engine.plan import StepOutput, StepPlan
from glm_cluster.engine.runner import ModelRunner


class Executor(Protocol):
    """Run a plan on every rank and return what rank 0 sampled."""

    def execute(self, plan: StepPlan) -> StepOutput: ...


class LocalExecutor:
    """A group of one rank, in this process."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner

    def execute(self, plan: StepPlan) -> StepOutput:
        return self._runner.execute(plan)
