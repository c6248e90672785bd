"""A plan crosses the wire unchanged."""

from glm_cluster.engine.plan import Slice, StepPlan
from glm_cluster.records import SamplingParams


def test_round_trip() -> None:
    sampling = SamplingParams(max_tokens=3, temperature=0.5, top_k=4, seed=2**63 - 1, stop_token_ids=(1, 2))
    plan = StepPlan((Slice("a#0", (1, 2, 3), 16, (4, 5), None), Slice("b#1", (9,), 0, (6,), sampling)))
    assert StepPlan.unpack(plan.pack()) == plan


def test_drafts_cross_the_wire_and_stand_as_far_as_sampled_ones_agree() -> None:
    part = Slice("a#0", (1, 2, 7, 8, 9), 16, (4, 5), SamplingParams(max_tokens=9), num_drafts=3)
    assert StepPlan.unpack(StepPlan((part,)).pack()).slices == (part,)
    assert part.num_known == 2
    assert part.accept((7, 8, 9, 4)) == (7, 8, 9, 4)
    assert part.accept((7, 8, 3, 4)) == (7, 8, 3)
    assert part.accept((3, 8, 9, 4)) == (3,)
    assert Slice("a#0", (1, 2), 16, (4, 5), None).accept((6,)) == (6,)


def test_round_trip_of_encode_requests() -> None:
    plan = StepPlan((Slice("a#0", (1, 2), 0, (4,), None, "mean"), Slice("b#0", (9,), 3, (6,), None)))
    assert StepPlan.unpack(plan.pack()) == plan
