"""Scheduling decisions, with sampled tokens made up: no model."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import pytest

from glm_cluster.engine.blocks import BlockPool
from glm_cluster.engine.plan import StepOutput, StepPlan
from glm_cluster.engine.scheduler import Scheduler
from glm_cluster.errors import InvalidRequest, Overloaded
from glm_cluster.records import (
    Encoded,
    EncodeRequest,
    GenerationRequest,
    Grammar,
    Pooling,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)


def _scheduler(num_blocks: int = 64, step_tokens: int = 32, max_running: int = 8, max_waiting: int = 100) -> Scheduler:
    max_len = num_blocks * 4
    return Scheduler(
        BlockPool(num_blocks + 1),
        block_tokens=4,
        max_running=max_running,
        max_waiting=max_waiting,
        step_tokens=step_tokens,
        max_model_len=max_len,
    )


def _request(name: str, num_prompt: int, max_tokens: int = 4, first: int = 10, **more: object) -> GenerationRequest:
    return GenerationRequest(
        request_id=name,
        prompt=tuple(range(first, first + num_prompt)),
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0, stop_token_ids=(1,)),
        **more,
    )


@dataclass(frozen=True)
class Ids:
    """Pooled rows that remember whose they are: the token ids."""

    ids: tuple[int, ...]

    def plus(self, later: Self) -> Self:
        return type(self)(self.ids + later.ids)

    def encoded(self, num_cached_tokens: int) -> Encoded:
        return Encoded(len(self.ids), 1, bytes(i % 256 for i in self.ids), num_cached_tokens)


def _encode(name: str, num_prompt: int, pooling: Pooling, first: int = 10) -> EncodeRequest:
    return EncodeRequest(request_id=name, prompt=tuple(range(first, first + num_prompt)), pooling=pooling)


def _output(plan: StepPlan, token: int = 5) -> StepOutput:
    return StepOutput(
        {s.key: _agreed(s.drafts, token) for s in plan.slices if s.samples},
        {s.key: Ids(s.tokens[-1:] if s.pooling == "last" else s.tokens) for s in plan.slices if s.pooling is not None},
    )


def _agreed(drafts: tuple[int, ...], token: int) -> tuple[int, ...]:
    """What a model gives that always says `token`."""
    return (token,) * (1 + next((i for i, draft in enumerate(drafts) if draft != token), len(drafts)))


def _step(scheduler: Scheduler, token: int = 5) -> tuple[StepPlan, list[TokenEvent]]:
    plan = scheduler.plan()
    assert plan is not None
    events = scheduler.commit(plan, _output(plan, token))
    scheduler.check()
    return plan, events


def _lengths(plan: StepPlan) -> dict[str, int]:
    return {s.key.split("#")[0]: len(s.tokens) for s in plan.slices}


def test_prefill_is_chunked_and_mixed_with_decode() -> None:
    scheduler = _scheduler(step_tokens=8)
    scheduler.add(_request("a", 6))
    scheduler.add(_request("b", 20, first=100))
    assert _lengths(_step(scheduler)[0]) == {"a": 6, "b": 2}
    plan, events = _step(scheduler)
    assert _lengths(plan) == {"a": 1, "b": 7}
    assert [e.request_id for e in events] == ["a"]
    plan, _ = _step(scheduler)
    assert plan.slices[1].start == 9


def test_nothing_is_sampled_before_the_prompt_ends() -> None:
    scheduler = _scheduler(step_tokens=8)
    scheduler.add(_request("a", 20))
    plans = [_step(scheduler)[0] for _ in range(3)]
    assert [s.samples for p in plans for s in p.slices] == [False, False, True]


def test_a_stop_token_ends_with_stop_and_max_tokens_with_length() -> None:
    scheduler = _scheduler()
    scheduler.add(_request("a", 3, max_tokens=2))
    assert _step(scheduler)[1][0].finish is None
    assert _step(scheduler)[1][0].finish == "length"
    scheduler.add(_request("b", 3))
    assert _step(scheduler, token=1)[1] == [TokenEvent("b", 0, 0, (1,), "stop", 0)]
    assert not scheduler.has_work


def test_a_shared_prefix_is_computed_once() -> None:
    scheduler = _scheduler()
    scheduler.add(_request("a", 11))
    _step(scheduler)
    scheduler.add(_request("b", 11))
    plan, events = _step(scheduler)
    assert _lengths(plan) == {"a": 1, "b": 3}
    assert {e.request_id: e.num_cached_tokens for e in events} == {"a": 0, "b": 8}
    assert plan.slices[0].blocks[:2] == plan.slices[1].blocks[:2]


def test_a_prefix_of_requests_that_come_together_is_computed_once() -> None:
    scheduler = _scheduler()
    for name, num_prompt in (("a", 11), ("b", 11), ("c", 8), ("d", 14)):
        scheduler.add(_request(name, num_prompt))
    plan, events = _step(scheduler)
    assert _lengths(plan) == {"a": 11, "b": 3, "c": 4, "d": 6}
    assert [s.start for s in plan.slices] == [0, 8, 4, 8]
    assert len({s.blocks[0] for s in plan.slices}) == 1
    assert len({s.blocks[2] for s in plan.slices if len(s.blocks) > 2}) == 3
    assert {e.request_id: e.num_cached_tokens for e in events} == {"a": 0, "b": 8, "c": 4, "d": 8}


def test_a_prompt_longer_than_a_step_is_computed_once_for_all_who_came_with_it() -> None:
    """Whoever is not done takes what is left of each step, so that nobody begins beside it."""
    scheduler = _scheduler(step_tokens=8)
    scheduler.add(_request("other", 3, max_tokens=20, first=200))
    for name in "abc":
        scheduler.add(_request(name, 50, max_tokens=1))
    computed = dict.fromkeys("abc", 0)
    while scheduler.load().num_running > 1 or scheduler.load().num_waiting:
        for name, count in _lengths(_step(scheduler)[0]).items():
            if name in computed:
                computed[name] += count
    assert computed == {"a": 50, "b": 2, "c": 2}


def test_a_failed_step_leaves_nothing_to_be_found() -> None:
    scheduler = _scheduler(step_tokens=20)
    scheduler.add(_request("a", 6, first=100))
    _step(scheduler)
    for name in "bc":
        scheduler.add(_request(name, 11))
    failed = scheduler.plan()
    assert failed is not None
    assert _lengths(failed) == {"a": 1, "b": 11, "c": 3}
    scheduler.cancel("b", 0)
    plan, events = _step(scheduler)
    assert [(s.key, s.start, len(s.tokens)) for s in plan.slices] == [("a#0", 4, 3), ("c#0", 0, 11)]
    assert [(e.request_id, e.start) for e in events if e.tokens] == [("a", 1), ("c", 0)]


def test_a_fully_cached_prompt_still_computes_one_token() -> None:
    scheduler = _scheduler()
    for name in "ab":
        scheduler.add(_request(name, 8, max_tokens=1))
        plan, events = _step(scheduler)
    assert _lengths(plan) == {"b": 4}
    assert events[0].finish == "length"


def test_the_youngest_gives_way_when_blocks_run_out() -> None:
    scheduler = _scheduler(num_blocks=4)
    scheduler.add(_request("old", 7, max_tokens=8))
    scheduler.add(_request("young", 7, max_tokens=8, first=100))
    _step(scheduler)
    _step(scheduler)
    plan, _ = _step(scheduler)
    assert _lengths(plan) == {"old": 1}
    assert scheduler.load().num_waiting == 1
    outputs: dict[str, int] = {"old": 3, "young": 2}
    while scheduler.has_work:
        for event in _step(scheduler)[1]:
            assert event.start == outputs[event.request_id]
            outputs[event.request_id] += len(event.tokens)
    assert outputs == {"old": 8, "young": 8}
    assert scheduler.load().num_free_blocks == 4


def test_cancel_frees_blocks_at_once() -> None:
    scheduler = _scheduler()
    for name in "abc":
        scheduler.add(_request(name, 9, first=ord(name) * 10))
    _step(scheduler)
    for name in "abc":
        scheduler.cancel(name, 0)
    assert scheduler.load().num_free_blocks == 64
    assert [e.finish for e in scheduler.take_events()] == ["cancelled"] * 3
    scheduler.cancel("unknown", 0)
    assert not scheduler.has_work


def test_cancel_of_a_waiting_request_and_of_one_attempt_only() -> None:
    scheduler = _scheduler(max_running=1)
    for request in (_request("a", 3), _request("a", 3, attempt=1), _request("b", 3)):
        scheduler.add(request)
    scheduler.cancel("a", 1)
    assert scheduler.load().num_waiting == 2
    assert [(e.request_id, e.attempt) for e in scheduler.take_events()] == [("a", 1)]


def test_requests_that_never_fit_are_refused() -> None:
    scheduler = _scheduler(num_blocks=4)
    with pytest.raises(InvalidRequest, match="16 tokens; prompt and output together may have 16"):
        scheduler.add(_request("a", 16))
    with pytest.raises(InvalidRequest, match="empty"):
        scheduler.add(_request("b", 0))


def test_output_is_cut_at_the_models_length() -> None:
    scheduler = _scheduler(num_blocks=2)
    scheduler.add(_request("a", 6, max_tokens=500))
    _step(scheduler)
    assert _step(scheduler)[1][0].finish == "length"


def test_too_many_waiting_are_turned_away_but_never_a_lost_one() -> None:
    scheduler = _scheduler(max_waiting=2)
    scheduler.add(_request("a", 3))
    scheduler.add(_request("b", 3))
    with pytest.raises(Overloaded, match="2 requests are waiting"):
        scheduler.add(_request("c", 3))
    scheduler.add(_request("lost", 3, output=(5,), attempt=1))
    assert scheduler.load().num_waiting == 3


@pytest.mark.parametrize(("output", "finish"), [((5, 1), "stop"), ((5, 5, 5, 5), "length")])
def test_reentry_of_a_finished_request_ends_at_once(output: tuple[int, ...], finish: str) -> None:
    scheduler = _scheduler()
    scheduler.add(_request("a", 3, output=output))
    assert scheduler.plan() is None
    (event,) = scheduler.take_events()
    assert (event.finish, event.tokens, event.start) == (finish, (), len(output))


@pytest.mark.parametrize(("pooling", "wanted"), [("last", [None, None, "last"]), ("mean", ["mean"] * 3)])
def test_rows_are_wanted_of_every_chunk_or_of_the_last(pooling: Pooling, wanted: list[Pooling | None]) -> None:
    scheduler = _scheduler(step_tokens=8)
    scheduler.add(_encode("a", 20, pooling))
    steps = [_step(scheduler) for _ in range(3)]
    assert [s.pooling for plan, _ in steps for s in plan.slices] == wanted
    assert [s.samples for plan, _ in steps for s in plan.slices] == [False] * 3
    assert [len(events) for _, events in steps] == [0, 0, 1]
    assert not scheduler.has_work


@pytest.mark.parametrize("pooling", ["last", "mean", "tokens"])
def test_an_encode_request_ends_in_one_event_with_its_rows(pooling: Pooling) -> None:
    scheduler = _scheduler(step_tokens=8)
    scheduler.add(_encode("a", 20, pooling))
    events = [event for _ in range(3) for event in _step(scheduler)[1]]
    rows = bytes([29]) if pooling == "last" else bytes(range(10, 30))
    assert events == [TokenEvent("a", 0, 0, (), "stop", 0, Encoded(len(rows), 1, rows))]
    assert scheduler.load().num_free_blocks == 64


def test_encode_requests_share_steps_with_whatever_else_is_there() -> None:
    scheduler = _scheduler(step_tokens=16)
    scheduler.add(_request("g", 6))
    scheduler.add(_encode("e", 6, "mean", first=50))
    scheduler.add(_encode("f", 20, "mean", first=100))
    plan, events = _step(scheduler)
    assert _lengths(plan) == {"g": 6, "e": 6, "f": 4}
    assert {e.request_id: e.finish for e in events} == {"g": None, "e": "stop"}


def test_who_needs_every_row_takes_no_shared_prefix_but_leaves_one() -> None:
    scheduler = _scheduler()
    for name, pooling, computed in (("a", "tokens", 12), ("b", "mean", 12), ("c", "last", 4), ("d", "last", 4)):
        scheduler.add(_encode(name, 12, pooling))
        plan, (event,) = _step(scheduler)
        assert _lengths(plan) == {name: computed}
        assert event.encoded is not None
        assert event.encoded.num_cached_tokens == event.num_cached_tokens == 12 - computed


def test_a_prompt_to_encode_may_fill_the_model_and_no_more() -> None:
    scheduler = _scheduler(num_blocks=4)
    scheduler.add(_encode("full", 16, "last"))
    assert _step(scheduler)[1][0].finish == "stop"
    with pytest.raises(InvalidRequest, match="17 tokens; it may have 16"):
        scheduler.add(_encode("long", 17, "last"))
    with pytest.raises(InvalidRequest, match="empty"):
        scheduler.add(_encode("empty", 0, "last"))


def test_who_needs_every_row_computes_for_those_who_came_with_it() -> None:
    scheduler = _scheduler(step_tokens=64)
    for name, pooling in (("a", "mean"), ("b", "last"), ("c", "tokens"), ("d", "last")):
        scheduler.add(_encode(name, 12, pooling))
    plan, events = _step(scheduler)
    assert _lengths(plan) == {"a": 12, "b": 4, "c": 12, "d": 4}
    assert {e.request_id: e.encoded.num_rows for e in events if e.encoded} == {"a": 12, "b": 1, "c": 12, "d": 1}


def test_preemption_and_cancelling_forget_the_rows_so_far() -> None:
    """The prompt is computed again from its start, so rows kept from before would count twice."""
    scheduler = _scheduler(num_blocks=5, step_tokens=9)
    scheduler.add(_request("old", 4, max_tokens=8))
    scheduler.add(_encode("young", 20, "tokens", first=100))
    done: list[TokenEvent] = []
    was_preempted = False
    while scheduler.has_work:
        done += [e for e in _step(scheduler)[1] if e.finish]
        was_preempted |= scheduler.load().num_waiting == 1
    assert was_preempted
    assert done[1].encoded == Encoded(20, 1, bytes(range(100, 120)))
    scheduler.add(_encode("gone", 20, "tokens"))
    _step(scheduler)
    scheduler.cancel("gone", 0)
    assert scheduler.take_events() == [TokenEvent("gone", 0, 0, (), "cancelled", 0, None)]


@pytest.mark.parametrize("seed", range(4))
def test_random_traffic_ends_once_and_returns_every_block(seed: int) -> None:
    rng = random.Random(seed)
    scheduler = _scheduler(num_blocks=12, step_tokens=9, max_running=5)
    finished: dict[str, int] = {}
    for i in range(60):
        first = rng.randrange(3) * 50 + 10
        if i % 3:
            scheduler.add(_request(f"r{i}", rng.randrange(1, 30), rng.randrange(1, 12), first=first))
        else:
            scheduler.add(_encode(f"r{i}", rng.randrange(1, 49), rng.choice(["last", "mean", "tokens"]), first=first))
    for _ in range(3000):
        if not scheduler.has_work:
            break
        if rng.random() < 0.05:
            scheduler.cancel(f"r{rng.randrange(60)}", 0)
        if (plan := scheduler.plan()) is None:
            events = scheduler.take_events()
        else:
            assert sum(len(s.tokens) for s in plan.slices) <= 9
            events = scheduler.commit(plan, _output(plan, rng.choice([1, 5, 6, 7, 8])))
        scheduler.check()
        for event in events:
            assert event.encoded is None or event.encoded.num_rows in (
                1,
                event.encoded.values[-1] - event.encoded.values[0] + 1,
            )
            if event.finish:
                finished[event.request_id] = finished.get(event.request_id, 0) + 1
    assert finished == {f"r{i}": 1 for i in range(60)}
    assert scheduler.load().num_free_blocks == 12


def _scores(plan: StepPlan) -> dict[str, tuple[TokenLogprobs, ...]]:
    """Of each row its position, so that it is known where one comes from."""
    return {s.key: tuple(TokenLogprobs(0.0, s.start + i) for i in range(s.num_scored)) for s in plan.slices}


def _judged(name: str, num_prompt: int, **more: object) -> GenerationRequest:
    request = _request(name, num_prompt, **more)
    return replace(request, sampling=replace(request.sampling, prompt_logprobs=0))


def _drain_scored(scheduler: Scheduler) -> dict[str, list[TokenEvent]]:
    events: dict[str, list[TokenEvent]] = {}
    while scheduler.has_work:
        plan = scheduler.plan()
        assert plan is not None
        for event in scheduler.commit(plan, replace(_output(plan), scores=_scores(plan))):
            events.setdefault(event.request_id, []).append(event)
        scheduler.check()
    return events


def test_a_prompt_is_scored_chunk_by_chunk_and_told_of_with_the_first_token() -> None:
    """The prefix cache does not stand for any of it; its last row is for the first token of output."""
    scheduler = _scheduler(step_tokens=5)
    for _ in range(2):
        scheduler.add(_judged("a", 13))
        first, *others = _drain_scored(scheduler)["a"]
        assert (first.start, first.num_cached_tokens) == (0, 0)
        assert [one and one.rank for one in first.prompt_logprobs] == [None, *range(12)]
        assert [e.prompt_logprobs for e in others] == [()] * 3


@pytest.mark.parametrize("num_prompt", [1, 13])
def test_a_prompt_is_scored_though_nothing_comes_after_it(num_prompt: int) -> None:
    scheduler = _scheduler(step_tokens=5)
    scheduler.add(_judged("a", num_prompt, max_tokens=0))
    (event,) = _drain_scored(scheduler)["a"]
    assert (event.tokens, event.finish) == ((), "length")
    assert [one and one.rank for one in event.prompt_logprobs] == [None, *range(num_prompt - 1)]


def test_a_prompt_that_nothing_comes_after_is_not_computed_unless_scored() -> None:
    scheduler = _scheduler()
    scheduler.add(_request("a", 9, max_tokens=0))
    assert scheduler.plan() is None
    assert [(e.tokens, e.finish, e.prompt_logprobs) for e in scheduler.take_events()] == [((), "length", ())]


def test_a_cancelled_prompt_is_told_nothing_of() -> None:
    scheduler = _scheduler(step_tokens=5)
    scheduler.add(_judged("a", 13))
    plan = scheduler.plan()
    assert plan is not None
    assert scheduler.commit(plan, replace(_output(plan), scores=_scores(plan))) == []
    scheduler.cancel("a", 0)
    assert [(e.finish, e.prompt_logprobs) for e in scheduler.take_events()] == [("cancelled", ())]


def test_a_prompt_of_one_token_has_nothing_to_score() -> None:
    scheduler = _scheduler()
    scheduler.add(_judged("a", 1))
    assert _drain_scored(scheduler)["a"][0].prompt_logprobs == (None,)


def test_a_request_that_goes_on_elsewhere_is_not_scored_again() -> None:
    scheduler = _scheduler()
    scheduler.add(_judged("a", 9, output=(5,)))
    plan = scheduler.plan()
    assert plan is not None
    assert [s.num_scored for s in plan.slices] == [0]
    assert all(not e.prompt_logprobs for e in scheduler.commit(plan, _output(plan)))


@pytest.mark.parametrize("seed", range(5))
def test_scores_survive_preemption_whole(seed: int) -> None:
    """A pool for one and a half: some are preempted while their prompt is computed, some after."""
    rng = random.Random(seed)
    scheduler = _scheduler(num_blocks=12, step_tokens=rng.choice([3, 7, 30]))
    lengths = {f"{i}": rng.randrange(1, 30) for i in range(12)}
    for name, length in lengths.items():
        scheduler.add(_judged(name, length, max_tokens=rng.randrange(1, 18)))
    for name, events in _drain_scored(scheduler).items():
        assert [one and one.rank for one in events[0].prompt_logprobs] == [None, *range(lengths[name] - 1)]
        assert all(not e.prompt_logprobs for e in events[1:])


def test_logprobs_are_cut_where_the_tokens_are() -> None:
    scheduler = _scheduler()
    scheduler.add(_request("a", 3, max_tokens=9))
    plan = scheduler.plan()
    assert plan is not None
    told = tuple(TokenLogprobs(-1.0, rank) for rank in (1, 2, 3, 4))
    (event,) = scheduler.commit(plan, StepOutput({"a#0": (5, 6, 1, 7)}, logprobs={"a#0": told}))
    assert (event.tokens, event.logprobs) == ((5, 6, 1), told[:3])


def test_a_grammar_is_refused_where_nobody_follows_one() -> None:
    request = _request("a", 3)
    with pytest.raises(InvalidRequest, match="grammar"):
        _scheduler().add(replace(request, sampling=replace(request.sampling, grammar=Grammar("regex", "a"))))


class Insists:
    """A grammar by which only 7 may come, whatever comes."""

    error = None
    is_ready = True
    num_taken = 0

    def take(self, tokens: Iterable[int]) -> None:
        self.num_taken += len([*tokens])

    def forced(self) -> list[int]:
        return [7] * 5


@pytest.mark.parametrize(
    ("step_tokens", "max_running", "room"), [(32, 64, 3), (12, 64, 2), (10, 64, 0), (32, 12, 2), (32, 10, 0)]
)
def test_what_a_grammar_forces_rides_in_whatever_is_left_of_a_step(
    step_tokens: int, max_running: int, room: int
) -> None:
    """In company that a guess would be too much for, but never beyond the rows that there is memory to sample from.

    It says nothing of guesses, be it wrong.
    """
    scheduler = Scheduler(
        BlockPool(65),
        block_tokens=4,
        max_running=max_running,
        max_waiting=10,
        step_tokens=step_tokens,
        max_model_len=256,
        speculative_tokens=3,
        constrain=lambda grammar: Insists(),
    )
    for i in range(9):
        scheduler.add(_request(f"{i}", 1, first=20 + i, max_tokens=9, max_drafts=0))
    forced = _request("forced", 1, max_tokens=9)
    scheduler.add(replace(forced, sampling=replace(forced.sampling, grammar=Grammar("regex", "7*"))))
    for num_known in (1, 2):
        plan, _ = _step(scheduler, token=5)
        assert [s.num_drafts for s in plan.slices] == [0] * 9 + [room]
        assert plan.slices[-1].drafts == (7,) * room
        assert scheduler._running["forced#0"].num_output == num_known
    assert scheduler._running["forced#0"].lookup.is_trusted
    plan, _ = _step(scheduler, token=7)
    assert scheduler._running["forced#0"].num_output == 3 + room


def test_nothing_is_forced_past_the_end_of_an_output() -> None:
    scheduler = Scheduler(
        BlockPool(9),
        block_tokens=4,
        max_running=1,
        max_waiting=1,
        step_tokens=9,
        max_model_len=32,
        speculative_tokens=7,
        constrain=lambda grammar: Insists(),
    )
    forced = _request("forced", 1, max_tokens=3)
    scheduler.add(replace(forced, sampling=replace(forced.sampling, grammar=Grammar("regex", "7*"))))
    plan, (event,) = _step(scheduler, token=7)
    assert plan.slices[0].num_drafts == 2
    assert (event.tokens, event.finish) == ((7, 7, 7), "length")


def test_the_lowest_priority_begins_first_and_the_oldest_among_equals() -> None:
    scheduler = _scheduler(max_running=1)
    for name, priority in (("a", 0), ("b", 5), ("c", -1), ("d", 0), ("e", 5)):
        scheduler.add(_request(name, 4, max_tokens=1, priority=priority))
    order = [_step(scheduler)[0].slices[0].key for _ in range(5)]
    assert order == ["c#0", "a#0", "d#0", "b#0", "e#0"]


def test_a_preempted_sequence_waits_before_those_of_its_priority_and_behind_lower_ones() -> None:
    scheduler = _scheduler(num_blocks=4)
    scheduler.add(_request("old", 7, max_tokens=8))
    scheduler.add(_request("young", 7, max_tokens=8, first=50))
    _step(scheduler)
    scheduler.add(_request("equal", 1, max_tokens=1))
    scheduler.add(_request("urgent", 1, max_tokens=1, priority=-1))
    _step(scheduler)
    while "young#0" in scheduler._running:
        _step(scheduler)
    assert [s.request.request_id for s in scheduler._waiting][-2:] == ["young", "equal"]


def test_only_requests_of_one_salt_share_a_prefix() -> None:
    scheduler = _scheduler()
    cached = []
    for name, salt in (("a", None), ("b", "x"), ("c", "x"), ("d", "y"), ("e", None)):
        scheduler.add(_request(name, 9, max_tokens=1, cache_salt=salt))
        cached.append(_step(scheduler)[1][-1].num_cached_tokens)
    assert cached == [0, 0, 8, 0, 8]


def test_salts_keep_prompts_apart_that_come_together() -> None:
    scheduler = _scheduler(step_tokens=64)
    for name, salt in (("a", None), ("b", "x"), ("c", "x"), ("d", "y"), ("e", None)):
        scheduler.add(_request(name, 9, max_tokens=1, cache_salt=salt))
    assert _lengths(_step(scheduler)[0]) == {"a": 9, "b": 9, "c": 1, "d": 9, "e": 1}


def test_prompts_to_encode_are_kept_apart_too() -> None:
    scheduler = _scheduler()
    cached = []
    for name, salt in (("a", None), ("b", "x"), ("c", "x"), ("d", None)):
        scheduler.add(replace(_encode(name, 9, "last"), cache_salt=salt))
        cached.append(_step(scheduler)[1][-1].num_cached_tokens)
    assert cached == [0, 0, 8, 8]
