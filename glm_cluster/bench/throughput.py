"""How fast an engine in this process does a whole job: N requests of P prompt tokens and T output tokens.

Knows the engine; no wire, no text. A job is run several times, with other prompts each time, so that no cache helps:
the first, which pays for everything that is made on first use, is told apart from the others.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from glm_cluster.records import GenerationRequest, SamplingParams, TokenEvent

if TYPE_CHECKING:
    from glm_cluster.bench.floor import Floor


class Worker(Protocol):
    """What is measured: an engine, or a fake in tests."""

    @property
    def has_work(self) -> bool: ...

    @property
    def num_steps(self) -> int: ...

    def add(self, request: GenerationRequest) -> None: ...

    def step(self) -> list[TokenEvent]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of the job."""

    seconds: float
    num_steps: int
    num_prompt_tokens: int
    num_output_tokens: int

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "seconds": round(self.seconds, 3),
            "steps": self.num_steps,
            "prompt_tokens": self.num_prompt_tokens,
            "output_tokens": self.num_output_tokens,
            "output_tokens_per_s": round(self.num_output_tokens / self.seconds, 2),
            "total_tokens_per_s": round((self.num_prompt_tokens + self.num_output_tokens) / self.seconds, 2),
        }


def run_job(
    engine: Worker,
    prompts: Sequence[tuple[int, ...]],
    num_output_tokens: int,
    *,
    now: Callable[[], float] = time.perf_counter,
) -> Job:
    """Queue all prompts at once and step until the last has its tokens. No token ends an answer early."""
    sampling = SamplingParams(max_tokens=num_output_tokens, temperature=0.0)
    first_step, started, received = engine.num_steps, now(), 0
    for index, prompt in enumerate(prompts):
        engine.add(GenerationRequest(request_id=f"bench-{index}", prompt=prompt, sampling=sampling))
    while engine.has_work:
        received += sum(len(event.tokens) for event in engine.step())
    return Job(
        seconds=now() - started,
        num_steps=engine.num_steps - first_step,
        num_prompt_tokens=sum(map(len, prompts)),
        num_output_tokens=received,
    )


def report(jobs: Sequence[Job]) -> dict[str, Any]:
    """The first job beside the median of the others; without others it stands for both."""
    warm = jobs[1:] or jobs
    middle = median(job.seconds for job in warm)
    typical = min(warm, key=lambda job: abs(job.seconds - middle))
    return {"cold": jobs[0].row(), "warm": typical.row(), "warm_seconds": [round(job.seconds, 3) for job in warm]}


def floor_seconds(
    floor: "Floor", *, num_requests: int, prompt_tokens: int, output_tokens: int, max_running: int, step_tokens: int
) -> float:
    """What the GEMMs of the job take: each wave of `max_running` prompts, then its steps one token each.

    The first token comes with the prompt, so a wave has one step less than tokens.
    """
    full, rest = divmod(num_requests, max_running)
    waves = [max_running] * full + ([rest] if rest else [])
    return sum(
        floor.prefill(rows * prompt_tokens, step_tokens).seconds + (output_tokens - 1) * floor.decode(rows).seconds
        for rows in waves
    )
