"""Where requests go: prefix first, then load."""

from collections import Counter
from random import Random

import pytest

from glm_cluster.deploy.placement import Placement


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def placement(clock: Clock) -> Placement:
    return Placement(random=Random(1), clock=clock)


def prompt(seed: int, num_tokens: int = 512) -> tuple[int, ...]:
    return tuple((seed * 7919 + i) % 50000 for i in range(num_tokens))


def report(placement: Placement, **held: int) -> None:
    for name, number in held.items():
        placement.report(name, number)


def send(placement: Placement, call: str, ids: tuple[int, ...]) -> str:
    best = placement.rank(call, ids)[0]
    placement.routed(call, best)
    return best


def test_same_prefix_goes_to_the_same_replica(placement: Placement, clock: Clock):
    report(placement, a=0, b=0)
    first = send(placement, "1", prompt(1))
    clock.now += 10
    other = {"a": "b", "b": "a"}[first]
    assert placement.rank("2", (*prompt(1), 5, 6)) == [first, other]


def test_unknown_prefix_goes_to_the_least_loaded(placement: Placement):
    report(placement, a=3, b=1, c=2)
    assert placement.rank("1", prompt(1)) == ["b", "c", "a"]


def test_a_replica_that_is_too_busy_loses_its_prefix(placement: Placement, clock: Clock):
    report(placement, a=0, b=0)
    home = send(placement, "1", prompt(1))
    placement.done("1")
    clock.now += 10
    placement.report(home, 7)
    assert send(placement, "2", prompt(1)) == home  # 512 tokens are worth eight requests
    placement.done("2")
    clock.now += 10
    placement.report(home, 9)
    assert send(placement, "3", prompt(1)) != home


def test_calls_sent_from_here_count_before_they_are_published(placement: Placement):
    """A burst must spread although the published loads are still those of before it."""
    report(placement, a=0, b=0)
    chosen = [send(placement, str(i), prompt(i)) for i in range(10)]
    assert chosen.count("a") == 5


def test_equals_share_what_comes_now_and_then(placement: Placement, clock: Clock):
    """Short prompts one after another once all went to whichever replica stood first."""
    report(placement, a=0, b=0, c=0)
    chosen = Counter(send(placement, str(i), (i,)) for i in range(90) if placement.done(str(i - 1)) is None)
    assert min(chosen.values()) > 15
    assert len(chosen) == 3


def test_avoided_replicas_come_last_but_do_come(placement: Placement):
    report(placement, a=0)
    send(placement, "1", prompt(1))
    report(placement, b=50)
    assert placement.rank("2", prompt(1), avoid=["a"]) == ["b", "a"]
    placement.withdraw("b")
    assert placement.rank("3", prompt(1), avoid=["a"]) == ["a"]


def test_replicas_to_avoid_do_not_fill_the_places_of_others(placement: Placement):
    names = [f"r{i:02}" for i in range(20)]
    for name in names:
        placement.report(name, 0)
    for call in range(50):
        assert placement.rank(str(call), (1,), avoid=names[:6])[0] in names[6:]


def test_nobody_is_in_service(placement: Placement):
    assert placement.rank("1", prompt(1)) == []
    placement.routed("1", "a")
    assert placement.in_flight("a") == 1
    placement.done("1")
    assert placement.in_flight("a") == 0


def test_a_replica_that_left_gets_nothing_whatever_it_knows(placement: Placement):
    report(placement, a=0, b=9)
    assert send(placement, "1", prompt(1)) == "a"
    placement.withdraw("a")
    assert placement.rank("2", prompt(1)) == ["b"]
    placement.done("1")
    placement.report("a", 0)
    assert placement.rank("3", prompt(1))[0] == "a"


def test_done_calls_are_forgotten(placement: Placement):
    report(placement, a=0)
    chosen = send(placement, "1", prompt(1))
    assert placement.in_flight(chosen) == 1
    placement.done("1")
    placement.done("1")
    assert placement.in_flight(chosen) == 0


def test_a_call_counts_where_it_was_taken(placement: Placement, clock: Clock):
    report(placement, a=0, b=0)
    first, second = placement.rank("1", prompt(1))
    placement.routed("1", second)
    assert (placement.in_flight(first), placement.in_flight(second)) == (0, 1)


def test_a_prefix_is_known_where_it_was_taken(placement: Placement, clock: Clock):
    report(placement, a=0, b=0)
    _, second = placement.rank("1", prompt(1))
    placement.routed("1", second)
    placement.done("1")
    clock.now += 10
    assert placement.rank("2", prompt(1))[0] == second


def test_a_choice_that_never_became_a_call_expires(placement: Placement, clock: Clock):
    report(placement, a=0, b=0)
    first = placement.rank("1", prompt(1))[0]
    clock.now += 60
    placement.rank("2", prompt(2), avoid=[first])
    assert placement.in_flight(first) == 0


def test_fronts_that_share_nothing_send_a_new_prompt_to_one_home(clock: Clock):
    fronts = [Placement(num_fronts=3, random=Random(seed), clock=clock) for seed in range(3)]
    for index, front in enumerate(fronts):
        for number in range(30):
            front.report(f"r{(number + index) % 30:02}", 0)
    for seed in range(20):
        assert len({front.rank(f"call{seed}", prompt(seed))[0] for front in fronts}) == 1
        clock.now += 10


def test_a_front_alone_looks_at_load_only(placement: Placement, clock: Clock):
    """With no other front to agree with, a home would only be a worse choice."""
    for number in range(30):
        placement.report(f"r{number:02}", number)
    for seed in range(100):
        assert send(placement, str(seed), prompt(seed)) < "r27"  # the best of any four
        placement.done(str(seed))
        clock.now += 10
