"""Which rows a token is drawn from when some of a slice's tokens are guesses."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from glm_cluster.engine import heads
from glm_cluster.engine.batch import Batch
from glm_cluster.engine.heads import TokenHead
from glm_cluster.engine.past import Past
from glm_cluster.engine.plan import Slice, StepOutput, StepPlan
from glm_cluster.engine.sampler import sample
from glm_cluster.records import SamplingParams

PAST = Past(SamplingParams(max_tokens=9, temperature=0), (), 0)


class Shifted:
    """A model that says, after token t, t + 1: a hidden row is the token itself."""

    def sampled_logits(self, x_RH: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(x_RH[:, 0] + 1, 50).float()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Positions of each call of the sampler."""
    calls: list[list[int]] = []

    def spy(rows: Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
        calls.append(list(positions))
        return sample(rows, params, positions)

    monkeypatch.setattr(heads, "sample", spy)
    return calls


def tokens_of(*slices: Slice) -> dict[str, tuple[int, ...]]:
    batch = Batch.build(StepPlan(slices), block_tokens=16, device=torch.device("cpu"), row_multiple=8)
    return TokenHead(Shifted(), ())(batch.ids_T[batch.rows_R].unsqueeze(1), batch).tokens


def test_a_row_is_drawn_from_only_where_every_guess_before_it_is_right(drawn: list[list[int]]) -> None:
    tokens = tokens_of(
        Slice("all right", (8, 9, 10, 11), 4, (1,), True, num_drafts=2, past=PAST),
        Slice("prompt", (20, 21), 0, (2,), False),
        Slice("first wrong", (5, 7, 8, 9), 2, (3,), True, num_drafts=3, past=PAST),
        Slice("plain", (30,), 9, (4,), True, past=PAST),
        Slice("second wrong", (1, 2, 4, 5), 6, (5,), True, num_drafts=3, past=PAST),
    )
    assert tokens == {"all right": (10, 11, 12), "first wrong": (6,), "plain": (31,), "second wrong": (2, 3)}
    assert drawn == [[6, 3, 10, 7], [7, 8], [8]]


def test_without_guesses_all_are_drawn_at_once(drawn: list[list[int]]) -> None:
    assert tokens_of(*(Slice(f"{i}", (i,), i, (1 + i,), True, past=PAST) for i in range(5))) == {
        f"{i}": (i + 1,) for i in range(5)
    }
    assert drawn == [[1, 2, 3, 4, 5]]


def test_a_row_after_guesses_is_drawn_with_them_in_its_past() -> None:
    """The model repeats itself: after each 8 an 8, but the first of equals where a penalty makes it one of many."""

    class Same:
        def sampled_logits(self, x_RH: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(x_RH[:, 0], 50).float() * 2.5

    asked = SamplingParams(max_tokens=9, temperature=0, frequency_penalty=1.0, logprobs=1)
    past = Past(asked, [8], 1)
    part = Slice("loop", (8, 8, 8, 8, 8), 0, (1,), True, num_drafts=4, past=past)
    batch = Batch.build(StepPlan((part,)), block_tokens=16, device=torch.device("cpu"), row_multiple=8)
    output = TokenHead(Same(), ())(batch.ids_T[batch.rows_R].unsqueeze(1), batch)
    assert output.tokens == {"loop": (8, 8, 8, 0)}
    assert [one.rank for one in output.logprobs["loop"]] == [1, 1, 1, 2]
    assert [one.top[0][0] for one in output.logprobs["loop"]] == [8] * 4


def test_an_unused_id_is_not_sampled_and_keeps_its_share_of_the_probability() -> None:
    past = Past(SamplingParams(max_tokens=9, temperature=0, logprobs=2), [5], 1)
    batch = Batch.build(
        StepPlan((Slice("r", (5,), 0, (1,), True, past=past),)),
        block_tokens=16,
        device=torch.device("cpu"),
        row_multiple=8,
    )
    output = TokenHead(Shifted(), ((6, 8),))(batch.ids_T[batch.rows_R].unsqueeze(1), batch)
    assert output.tokens == {"r": (0,)}
    (one,) = output.logprobs["r"]
    assert one.logprob == pytest.approx(-math.log(49 + math.e))
    assert (one.rank, [token for token, _ in one.top]) == (1, [0, 1])


def test_rows_to_score_are_judged_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by the token after it, across the slices of a step; the first asks for two names, the second for none."""
    monkeypatch.setattr(heads, "SCORED_ROWS", 8)
    first, second = (SamplingParams(max_tokens=9, prompt_logprobs=top) for top in (2, 0))
    prompt = [5, 6, 7, 9, 9, 10, 11, 12, 13, 14]
    plan = StepPlan(
        (
            Slice("a", tuple(prompt[1:8]), 1, (1,), False, num_scored=7, past=Past(first, prompt, 10)),
            Slice("b", tuple(prompt), 0, (2,), True, num_scored=9, past=Past(second, prompt, 10)),
        )
    )
    batch = Batch.build(plan, block_tokens=16, device=torch.device("cpu"), row_multiple=8)
    output = TokenHead(Shifted(), ())(batch.ids_T[batch.rows_R].unsqueeze(1), batch)
    assert [one.rank == 1 for one in output.scores["a"]] == [True, False, False, True, True, True, True]
    assert [one.top[0][0] for one in output.scores["a"]] == [7, 8, 10, 10, 11, 12, 13]
    assert [one.rank == 1 for one in output.scores["b"]] == [True, True, False, False, True, True, True, True, True]
    assert [one.top for one in output.scores["b"]] == [()] * 9
    assert output.tokens.keys() == {"b"}
    assert output.logprobs == {}


def test_a_rank_that_does_not_sample_meets_the_others_and_says_nothing() -> None:
    meetings: list[int] = []

    class Other:
        def sampled_logits(self, x_RH: Tensor) -> None:
            meetings.append(len(x_RH))

    parts = (Slice("a", (1,) * 70, 0, (1, 3, 4, 5, 6), False, num_scored=70), Slice("b", (2,), 9, (2,), True))
    batch = Batch.build(StepPlan(parts), block_tokens=16, device=torch.device("cpu"), row_multiple=8)
    assert TokenHead(Other(), ())(batch.ids_T[batch.rows_R].unsqueeze(1), batch) == StepOutput()
    assert meetings == [64, 8, 8]
