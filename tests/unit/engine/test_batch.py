"""A plan laid out as tensors: padded to whole rows of eight, slots and tables by block."""

import torch

from glm_cluster.engine.batch import Batch
from glm_cluster.engine.past import Draw, Past
from glm_cluster.engine.plan import Slice, StepPlan
from glm_cluster.records import SamplingParams

PLAN = StepPlan(
    (
        Slice("prompt", (11, 12, 13), 16, (5, 6), False),
        Slice("decode", (21,), 63, (1, 2, 3, 4), True),
        Slice("next tile", (31,), 64, (7, 8, 9, 10, 3), True),
        Slice("also decode", (41,), 2, (12,), True),
    )
)


def _batch(row_multiple: int = 8) -> Batch:
    return Batch.build(PLAN, block_tokens=16, device=torch.device("cpu"), row_multiple=row_multiple)


def test_rows_are_padded_to_the_multiple_asked_for_and_positions_to_eights() -> None:
    batch = _batch()
    assert batch.ids_T.tolist() == [11, 12, 13, 21, 31, 41, 0, 0]
    assert batch.rows_R.tolist() == [3, 4, 5, 0, 0, 0, 0, 0]
    assert _batch(1).ids_T.tolist() == [11, 12, 13, 21, 31, 41]
    assert _batch(1).rows_R.tolist() == [3, 4, 5]
    assert _batch(1).positions_P.tolist() == batch.positions_P.tolist() == [16, 17, 18, 63, 64, 2, 0, 0]


def test_sequences_lie_one_after_another() -> None:
    ragged = _batch().ragged
    assert list(ragged.first_rows) == [0, 3, 4, 5]
    assert list(ragged.num_tokens) == [3, 1, 1, 1]
    assert list(ragged.starts) == [16, 63, 64, 2]
    assert list(ragged.tables) == [part.blocks for part in PLAN.slices]


def test_slots_follow_the_blocks_and_padding_goes_to_scratch() -> None:
    assert list(_batch().ragged.slots) == [96, 97, 98, 79, 48, 194, 0, 0]


def test_rows_to_pool_are_a_slices_last_or_all_of_them() -> None:
    plan = StepPlan(
        (
            Slice("mean", (11, 12, 13), 0, (5,), False, "mean"),
            Slice("not yet", (21, 22), 0, (6,), False),
            Slice("last", (31, 32, 33), 16, (7, 8), False, "last"),
            Slice("tokens", (41, 42), 4, (9,), False, "tokens"),
        )
    )
    batch = Batch.build(plan, block_tokens=16, device=torch.device("cpu"), row_multiple=8)
    assert batch.rows_R.tolist() == [0, 1, 2, 7, 8, 9, 0, 0]
    assert batch.pooled == (("mean", "mean", 3), ("last", "last", 1), ("tokens", "tokens", 2))
    assert batch.sampled == ()


def test_what_is_sampled_and_where() -> None:
    batch = _batch()
    assert batch.sampled == ("decode", "next tile", "also decode")
    assert batch.sample_positions == (64, 65, 3)


def test_a_row_is_sampled_after_the_last_known_token_and_after_each_draft() -> None:
    seeded, greedy = (Past(SamplingParams(max_tokens=9, seed=seed), range(33), 3) for seed in (4, 0))
    plan = StepPlan(
        (
            Slice("drafts", (11, 12, 13, 14, 15), 30, (5, 6, 7), True, num_drafts=2, past=seeded),
            Slice("not yet", (21, 22), 0, (8,), False),
            Slice("plain", (31,), 9, (9,), True, past=greedy),
            Slice("pooled", (41, 42), 0, (10,), False, "tokens"),
        )
    )
    batch = Batch.build(plan, block_tokens=16, device=torch.device("cpu"), row_multiple=8)
    assert batch.rows_R.tolist() == [2, 3, 4, 7, 8, 9, 0, 0]
    assert batch.sampled == ("drafts", "drafts", "drafts", "plain")
    assert batch.guesses == (14, 15, None, None)
    assert batch.draws == (Draw(seeded), Draw(seeded, (14,)), Draw(seeded, (14, 15)), Draw(greedy))
    assert batch.sample_positions == (33, 34, 35, 10)


def test_rows_to_score_come_after_the_others_padded_by_themselves() -> None:
    plan = StepPlan(
        (
            Slice("chunk", (11, 12, 13), 0, (5,), False, num_scored=3),
            Slice("end", (21, 22, 23), 4, (6,), True, num_scored=2),
            Slice("plain", (31,), 9, (9,), True),
        )
    )
    batch = Batch.build(plan, block_tokens=16, device=torch.device("cpu"), row_multiple=8)
    assert batch.rows_R.tolist() == [5, 6, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0]
    assert batch.num_scored_rows == 8
    assert batch.scored == plan.slices[:2]
    assert batch.draws == ()
