"""A plan crosses the wire unchanged, but for what only rank 0 needs."""

from glm_cluster.engine.past import Past
from glm_cluster.engine.plan import Slice, StepPlan
from glm_cluster.records import SamplingParams


def test_round_trip() -> None:
    plan = StepPlan((Slice("a#0", (1, 2, 3), 16, (4, 5), False), Slice("b#1", (9,), 0, (6,), True, num_scored=1)))
    assert StepPlan.unpack(plan.pack()) == plan


def test_the_past_stays_on_rank_0() -> None:
    """A broadcast costs the same whatever a request asks of its sampling, and however long it is."""
    past = Past(SamplingParams(max_tokens=9, bad_words=((7, 8),)), list(range(10_000)), 5_000)
    part = Slice("a#0", (1, 2, 3), 16, (4, 5), True, past=past)
    packed = StepPlan((part,)).pack()
    assert len(packed) < 32
    (arrived,) = StepPlan.unpack(packed).slices
    assert arrived == part
    assert arrived.past is None


def test_drafts_cross_the_wire() -> None:
    part = Slice("a#0", (1, 2, 7, 8, 9), 16, (4, 5), True, num_drafts=3)
    assert StepPlan.unpack(StepPlan((part,)).pack()).slices == (part,)
    assert (part.num_known, part.drafts) == (2, (7, 8, 9))
    assert Slice("a#0", (1, 2), 16, (4, 5), False).drafts == ()


def test_round_trip_of_encode_requests() -> None:
    plan = StepPlan((Slice("a#0", (1, 2), 0, (4,), False, "mean"), Slice("b#0", (9,), 3, (6,), False)))
    assert StepPlan.unpack(plan.pack()) == plan
