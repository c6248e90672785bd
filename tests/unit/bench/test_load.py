"""Schedules and loops, with a client that keeps count instead of asking."""

import asyncio
import time

import pytest

from glm_cluster.bench.against import alternate, compare, turns
from glm_cluster.bench.load import arrival_offsets, closed_loop, open_loop
from glm_cluster.bench.summary import Slo, summarise
from glm_cluster.bench.timing import Timing


class Counting:
    """A client whose answers come when all of its open requests number `until`, or after a few turns of the loop."""

    def __init__(self) -> None:
        self.open = 0
        self.most_open = 0
        self.asked: list[object] = []
        self.due_s: list[float] = []

    async def ask(self, prompt, due_s):
        self.asked.append(prompt)
        self.due_s.append(due_s)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        for _ in range(3):
            await asyncio.sleep(0)
        self.open -= 1
        return answer(due_s, 1.0)


def answer(due_s, seconds, tokens=1):
    return Timing(
        due_s=due_s, arrivals_s=(due_s + seconds,), end_s=due_s + seconds, num_tokens=tokens, num_prompt_tokens=1
    )


async def test_closed_loop_asks_each_prompt_once_and_no_more_at_a_time() -> None:
    client = Counting()
    timings = await closed_loop(client, ["a", "b", "c", "d", "e"], 2)
    assert client.asked == ["a", "b", "c", "d", "e"]
    assert client.most_open == 2
    assert len(timings) == 5


async def test_open_loop_waits_for_nobody() -> None:
    client = Counting()
    before = time.perf_counter()
    timings = await open_loop(client, ["a", "b", "c"], [0.0, 0.0, 0.0])
    assert client.most_open == 3
    assert len(timings) == 3
    assert all(due >= before for due in client.due_s)


async def test_open_loop_counts_from_when_a_request_was_due() -> None:
    client = Counting()
    await open_loop(client, ["a", "b"], [0.0, 0.01])
    assert client.due_s[1] - client.due_s[0] == pytest.approx(0.01)


def test_fixed_arrivals() -> None:
    assert arrival_offsets(4, 2.0, "fixed", seed=1) == (0.0, 0.5, 1.0, 1.5)


def test_poisson_arrivals_have_the_rate_and_the_seed() -> None:
    offsets = arrival_offsets(4000, 10.0, "poisson", seed=3)
    assert offsets == arrival_offsets(4000, 10.0, "poisson", seed=3)
    assert offsets != arrival_offsets(4000, 10.0, "poisson", seed=4)
    assert list(offsets) == sorted(offsets)
    assert offsets[0] == 0.0
    assert offsets[-1] / 3999 == pytest.approx(0.1, rel=0.1)


def test_the_one_that_begins_changes() -> None:
    assert turns(3) == ["ours", "peer", "peer", "ours", "ours", "peer"]


async def test_rounds_are_taken_by_turns_and_compared() -> None:
    seen = []
    seconds = {"ours": [1.0, 9.0, 2.0], "peer": [4.0, 4.0, 4.0]}

    async def measure(name, number):
        seen.append((name, number))
        return summarise([answer(0.0, seconds[name][number], tokens=8)], Slo())

    ours, peer = await alternate(3, measure)
    assert seen == [("ours", 0), ("peer", 0), ("peer", 1), ("ours", 1), ("ours", 2), ("peer", 2)]
    found = compare(ours, peer)
    assert (found.ours["ttft_p50_s"], found.peer["ttft_p50_s"], found.ratio["ttft_p50_s"]) == (2.0, 4.0, 0.5)
    assert found.ratio["output_tokens_per_s"] == 2.0
    assert found.ratio["longest_gap_s"] is None  # a peer with no gap at all
