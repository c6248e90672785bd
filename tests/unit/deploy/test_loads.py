"""What a replica has before it: what it says, and what was sent since."""

from random import Random

import pytest

from glm_cluster.deploy.loads import Loads


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loads(clock: Clock) -> Loads:
    return Loads(Random(1), clock)


def ranked(loads: Loads, clock: Clock) -> list[str]:
    """All replicas in service, least loaded first."""
    return sorted(loads.some(100), key=lambda replica: loads.tokens(replica, clock.now) or 0.0)


def test_a_replica_is_as_loaded_as_it_says(loads: Loads, clock: Clock):
    for name, held in {"a": 3, "b": 1, "c": 2}.items():
        loads.report(name, held, 0)
    assert ranked(loads, clock) == ["b", "c", "a"]


def test_waiting_requests_weigh_more_than_running_ones(loads: Loads, clock: Clock):
    loads.report("a", 3, 1)
    loads.report("b", 4, 0)
    assert ranked(loads, clock) == ["b", "a"]


def test_what_was_sent_since_a_report_is_added_to_it(loads: Loads, clock: Clock):
    """A report of ten was once all that counted until more than ten were sent from here."""
    loads.report("a", 10, 0)
    loads.report("b", 11, 0)
    for _ in range(3):
        loads.send("a", 0)
    assert ranked(loads, clock) == ["b", "a"]


def test_a_report_counts_what_was_sent_from_here_once(loads: Loads, clock: Clock):
    loads.report("a", 0, 0)
    for _ in range(3):
        loads.send("a", 0)
    before = loads.tokens("a", clock.now)
    loads.report("a", 3, 0)
    assert loads.tokens("a", clock.now) == before
    for _ in range(3):
        loads.end("a", 0, clock.now)
    assert loads.tokens("a", clock.now) == 0


def test_a_report_that_is_older_than_the_last_calls_takes_none_of_them_back(loads: Loads, clock: Clock):
    loads.report("a", 0, 0)
    loads.send("a", 0)
    before = loads.tokens("a", clock.now)
    loads.report("a", 0, 0)
    assert loads.tokens("a", clock.now) == before


def test_prompts_to_compute_are_forgotten_as_they_are_computed(loads: Loads, clock: Clock):
    loads.report("a", 0, 0)
    loads.send("a", 4000)
    full = loads.tokens("a", clock.now)
    clock.now += 0.5
    half = loads.tokens("a", clock.now)
    clock.now += 60.0
    empty = loads.tokens("a", clock.now)
    assert (full, half, empty) == (pytest.approx(empty + 4000), pytest.approx(empty + 2000), pytest.approx(empty))


def test_the_end_of_a_call_takes_back_what_is_left_of_its_own_tokens_alone(loads: Loads, clock: Clock):
    loads.report("a", 0, 0)
    loads.send("a", 4000)
    clock.now += 0.5
    loads.send("a", 1000)
    both = loads.tokens("a", clock.now)
    loads.end("a", 4000, 0.0)
    one = loads.tokens("a", clock.now)
    loads.end("a", 1000, 0.5)
    assert (both, one) == (pytest.approx(2 * 128 + 3000), pytest.approx(128 + 1000))
    assert loads.tokens("a", clock.now) == pytest.approx(0)


def test_one_out_of_service_is_not_offered_and_its_calls_stay_counted(loads: Loads, clock: Clock):
    loads.report("a", 0, 0)
    loads.report("b", 0, 0)
    loads.send("a", 10)
    loads.withdraw("a")
    loads.withdraw("a")
    loads.correct("a", 7)
    assert (loads.some(5), loads.tokens("a", clock.now), loads.in_flight("a")) == (["b"], None, 1)
    loads.report("a", 1, 0)
    loads.end("a", 10, clock.now)
    assert loads.tokens("a", clock.now) == 0


def test_a_few_of_many_are_other_ones_each_time(loads: Loads):
    names = {f"r{i}" for i in range(20)}
    for name in names:
        loads.report(name, 0, 0)
    seen = set()
    for _ in range(200):
        some = loads.some(4)
        assert len(set(some)) == 4
        seen.update(some)
    assert seen == names


@pytest.mark.parametrize("count", [3, 7])
def test_all_are_offered_where_there_are_no_more(loads: Loads, count: int):
    for name in "abc":
        loads.report(name, 0, 0)
    firsts = set()
    for _ in range(50):
        some = loads.some(count)
        assert sorted(some) == ["a", "b", "c"]
        firsts.add(some[0])
    assert firsts == {"a", "b", "c"}


def test_fronts_agree_on_homes_whatever_order_they_heard_of_replicas_in(clock: Clock):
    one, other = Loads(Random(1), clock), Loads(Random(2), clock)
    assert one.home(5) is None
    for name in "abcd":
        one.report(name, 0, 0)
    for name in "dxbca":
        other.report(name, 0, 0)
    other.withdraw("x")
    homes = [one.home(number) for number in range(-8, 8)]
    assert homes == [other.home(number) for number in range(-8, 8)]
    assert set(homes) == set("abcd")
