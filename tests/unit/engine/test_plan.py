"""A plan crosses the wire unchanged."""

from glm_cluster.engine.plan import Slice, StepPlan
from glm_cluster.records import SamplingParams


def test_round_trip() -> None:
    sampling = SamplingParams(max_tokens=3, temperature=0.5, top_k=4, seed=2**63 - 1, stop_token_ids=(1, 2))
    plan = StepPlan((Slice("a#0", (1, 2, 3), 16, (4, 5), None), Slice("b#1", (9,), 0, (6,), sampling)))
    assert StepPlan.unpack(plan.pack()) == plan


def test_drafts_cross_the_wire() -> None:
    part = Slice("a#0", (1, 2, 7, 8, 9), 16, (4, 5), SamplingParams(max_tokens=9), num_drafts=3)
    assert StepPlan.unpack(StepPlan((part,)).pack()).slices == (part,)
    assert (part.num_known, part.drafts) == (2, (7, 8, 9))
    assert Slice("a#0", (1, 2), 16, (4, 5), None).drafts == ()


def test_round_trip_of_encode_requests() -> None:
    plan = StepPlan((Slice("a#0", (1, 2), 0, (4,), None, "mean"), Slice("b#0", (9,), 3, (6,), None)))
    assert StepPlan.unpack(plan.pack()) == plan
