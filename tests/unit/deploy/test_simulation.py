"""What placement is worth: simulated multi-turn traffic, the same for each way to choose a replica.

`tests/bench/routing.py` plays it for larger fleets.
"""

from functools import cache

import pytest
from support.fronts import POLICIES
from support.simulation import Cache, Fleet, Simulation
from support.traffic import Traffic, conversations


def play(policy: str, fronts: int) -> dict[str, float]:
    fleet, traffic = Fleet(replicas=8, fronts=fronts), Traffic(seconds=100.0)
    return Simulation(fleet, traffic, POLICIES[policy], seed=3, warm_up_s=40.0).run()


played = cache(play)


@pytest.mark.parametrize("fronts", [1, 4])
@pytest.mark.parametrize("other", ["power of two", "round robin", "least loaded"])
def test_ours_finds_more_prefixes_and_makes_nobody_wait_longer(fronts: int, other: str):
    ours, theirs = played("ours", fronts), played(other, fronts)
    assert ours["prefix_hit_rate"] > theirs["prefix_hit_rate"] + 0.03
    assert ours["queueing_p99_s"] < theirs["queueing_p99_s"]
    assert ours["first_token_p50_s"] < theirs["first_token_p50_s"]


def test_a_seed_says_it_all():
    assert play("ours", 4) == played("ours", 4)


def test_each_turn_goes_on_from_the_answer_before():
    traffic = Traffic(seconds=20.0)
    conversation = next(c for _, c in conversations(traffic, 2, seed=1) if c.turns_left > 1)
    conversation.next_turn()
    before = conversation.prompt + conversation.answer
    conversation.next_turn()
    assert conversation.prompt[: len(before)] == before
    assert len(conversation.prompt) > len(before)


def test_a_simulated_cache_forgets_ends_before_beginnings():
    cache = Cache(4)
    cache.take([1, 2, 3])
    cache.take([7, 8])
    assert (cache.held([1, 2, 3]), cache.held([7, 8, 9])) == (2, 2)
