"""Whole jobs: counted by hand with a fake engine and clock, then a tiny model for real."""

import json
from types import SimpleNamespace

import pytest
from support.checkpoints import write_tokenizer

from glm_cluster.bench.throughput import Job, floor_seconds, report, run_job
from glm_cluster.cli import main
from glm_cluster.records import TokenEvent


class OneEach:
    """An engine that gives every request a token a step."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.requests = []
        self.num_steps = 7

    @property
    def has_work(self) -> bool:
        return bool(self.left)

    def add(self, request) -> None:
        self.requests.append(request)
        self.left[request.request_id] = request.sampling.max_tokens

    def step(self):
        self.num_steps += 1
        events = [TokenEvent(name, 0, 0, (5,)) for name in self.left]
        self.left = {name: left - 1 for name, left in self.left.items() if left > 1}
        return events


def test_a_job_counts_steps_and_tokens() -> None:
    engine, clock = OneEach(), iter([10.0, 12.0])
    job = run_job(engine, [(1, 2, 3), (4, 5)], 4, now=lambda: next(clock))
    assert job == Job(seconds=2.0, num_steps=4, num_prompt_tokens=5, num_output_tokens=8)
    assert all(request.sampling.stop_token_ids == () for request in engine.requests)
    assert (job.row()["output_tokens_per_s"], job.row()["total_tokens_per_s"]) == (4.0, 6.5)


def test_the_first_job_is_told_apart() -> None:
    jobs = [Job(seconds=s, num_steps=1, num_prompt_tokens=1, num_output_tokens=1) for s in (9.0, 3.0, 1.0, 2.0)]
    found = report(jobs)
    assert (found["cold"]["seconds"], found["warm"]["seconds"]) == (9.0, 2.0)
    assert found["warm_seconds"] == [3.0, 1.0, 2.0]


def test_floor_of_waves() -> None:
    """Five requests, two at a time: two waves of 2 and one of 1."""
    asked = []

    class Fake:
        def prefill(self, num_tokens, step_tokens):
            asked.append((num_tokens, step_tokens))
            return SimpleNamespace(seconds=num_tokens / 10)

        def decode(self, rows):
            return SimpleNamespace(seconds=rows)

    found = floor_seconds(Fake(), num_requests=5, prompt_tokens=10, output_tokens=4, max_running=2, step_tokens=8)
    assert asked == [(20, 8), (20, 8), (10, 8)]
    assert found == pytest.approx((2 + 3 * 2) * 2 + (1 + 3 * 1))


@pytest.mark.usefixtures("quick_floor")
def test_command_on_a_tiny_model(checkpoint, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    directory = shutil.copytree(checkpoint(), tmp_path / "model")
    write_tokenizer(directory)
    arguments = ["--requests", "3", "--prompt-tokens", "5", "--max-tokens", "4", "--rounds", "1", "--floor", "--json"]
    assert main(["bench", "throughput", "--model", str(directory), *arguments]) == 0
    (line,) = capsys.readouterr().out.strip().split("\n")
    found = json.loads(line)
    assert (found["warm"]["prompt_tokens"], found["warm"]["output_tokens"]) == (15, 12)
    assert found["floor_share"] > 0
