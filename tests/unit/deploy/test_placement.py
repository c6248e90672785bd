"""Where requests go: prefix first, then load."""

import time

import pytest

from glm_cluster.deploy.placement import Placement, Prefixes, prefix_hashes


@pytest.fixture
def placement() -> Placement:
    return Placement()


def prompt(seed: int, num_tokens: int = 512) -> tuple[int, ...]:
    return tuple((seed * 7919 + i) % 50000 for i in range(num_tokens))


def send(placement: Placement, call: str, ids: tuple[int, ...], **loads: int) -> str:
    best = placement.rank(call, ids, loads)[0]
    placement.routed(call, best)
    return best


def test_a_prefix_hash_covers_everything_before_it():
    a = prompt(1)
    b = (a[0] + 1, *a[1:])
    assert len(prefix_hashes(a)) == 8
    assert not set(prefix_hashes(a)) & set(prefix_hashes(b))
    assert prefix_hashes(a[:200]) == prefix_hashes(a)[:3]


def test_same_prefix_goes_to_the_same_replica(placement: Placement):
    first = send(placement, "1", prompt(1), a=0, b=0)
    other = {"a": "b", "b": "a"}[first]
    assert placement.rank("2", (*prompt(1), 5, 6), {"a": 0, "b": 0}) == [first, other]


def test_unknown_prefix_goes_to_the_least_loaded(placement: Placement):
    assert placement.rank("1", prompt(1), {"a": 3, "b": 1, "c": 2}) == ["b", "c", "a"]


def test_a_replica_that_is_too_busy_loses_its_prefix(placement: Placement):
    home = send(placement, "1", prompt(1), a=0, b=0)
    other = {"a": "b", "b": "a"}[home]
    assert placement.rank("2", prompt(1), {home: 3, other: 0})[0] == home  # 512 tokens are worth four requests
    assert placement.rank("3", prompt(1), {home: 6, other: 0})[0] == other


def test_calls_sent_from_here_count_before_they_are_published(placement: Placement):
    """A burst must spread although the published loads are still those of before it."""
    chosen = [send(placement, str(i), prompt(i), a=0, b=0) for i in range(10)]
    assert chosen.count("a") == 5


def test_avoided_replicas_come_last_but_do_come(placement: Placement):
    send(placement, "1", prompt(1), a=0)
    assert placement.rank("2", prompt(1), {"a": 0, "b": 50}, avoid=["a"]) == ["b", "a"]
    assert placement.rank("3", prompt(1), {"a": 0}, avoid=["a"]) == ["a"]


def test_done_calls_are_forgotten(placement: Placement):
    chosen = send(placement, "1", prompt(1), a=0)
    assert placement.in_flight(chosen) == 1
    placement.done("1")
    placement.done("1")
    assert placement.in_flight(chosen) == 0


def test_a_call_counts_where_it_was_taken(placement: Placement):
    first, second = placement.rank("1", prompt(1), {"a": 0, "b": 0})
    placement.routed("1", second)
    assert (placement.in_flight(first), placement.in_flight(second)) == (0, 1)


def test_a_choice_that_never_became_a_call_expires(placement: Placement, monkeypatch: pytest.MonkeyPatch):
    now = time.monotonic()
    first = placement.rank("1", prompt(1), {"a": 0, "b": 0})[0]
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    placement.rank("2", prompt(2), {"c": 0})
    assert placement.in_flight(first) == 0


def test_memory_is_bounded():
    prefixes = Prefixes(capacity=100)
    for seed in range(50):
        prefixes.note(prefix_hashes(prompt(seed)), f"r{seed}")
    assert len(prefixes) == 100
    assert prefixes.matched(prefix_hashes(prompt(49))) == {"r49": 512}
    assert prefixes.matched(prefix_hashes(prompt(0))) == {}


def test_a_shared_prefix_remembers_several_holders():
    prefixes = Prefixes()
    short, long = prefix_hashes(prompt(1, 64)), prefix_hashes(prompt(1, 128))
    prefixes.note(long, "a")
    prefixes.note(short, "b")
    assert prefixes.matched(long) == {"a": 128, "b": 64}
