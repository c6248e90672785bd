"""Which rows a token is drawn from when some of a slice's tokens are guesses."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from glm_cluster.engine import heads
from glm_cluster.engine.batch import Batch
from glm_cluster.engine.heads import TokenHead
from glm_cluster.engine.past import Past
from glm_cluster.engine.plan import Slice, StepPlan
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
