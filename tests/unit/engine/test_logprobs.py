"""Log-probabilities, ranks and the likeliest tokens, against a sorted list."""

import pytest
import torch

from glm_cluster.engine.logprobs import score
from glm_cluster.records import TokenLogprobs

LOGITS = torch.tensor([[1.0, -0.0, 3.0, 0.0, 3.0, -2.0]])


def test_one_token_its_rank_and_the_likeliest_the_lower_of_equals_first() -> None:
    own = LOGITS.log_softmax(-1)[0].tolist()
    assert score(LOGITS, [0], [5]) == [TokenLogprobs(own[0], 3, tuple((i, own[i]) for i in (2, 4, 0, 1, 3)))]
    assert [score(LOGITS, [token], [0])[0] for token in range(6)] == [
        TokenLogprobs(own[token], rank) for token, rank in enumerate([3, 4, 1, 5, 2, 6])
    ]


def test_as_many_as_a_row_asks_for_and_no_more_than_there_are() -> None:
    rows = score(LOGITS.expand(3, -1), [2, 2, 2], [0, 2, 99])
    assert [[token for token, _ in one.top] for one in rows] == [[], [2, 4], [2, 4, 0, 1, 3, 5]]


def test_unused_ids_keep_their_share_and_are_never_named() -> None:
    own = LOGITS.log_softmax(-1)[0].tolist()
    assert score(LOGITS, [0], [2], ((2, 4), (5, 6))) == [TokenLogprobs(own[0], 2, ((4, own[4]), (0, own[0])))]
    assert LOGITS[0, 2] == 3.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_is_judged_as_it_is_alone(dtype: torch.dtype) -> None:
    """In bfloat16 many logits are equal: a plain top-k has no order among them."""
    rows = (torch.randn(9, 5000, generator=torch.Generator().manual_seed(3)) * 2).to(dtype)
    tokens, tops = [7 * i for i in range(9)], [i % 4 * 7 for i in range(9)]
    together = score(rows, tokens, tops)
    for i, row in enumerate(rows):
        assert [together[i]] == score(row.unsqueeze(0), [tokens[i]], [tops[i]])
        best = sorted(range(5000), key=lambda v: (-row[v].item(), v))
        assert together[i].rank == best.index(tokens[i]) + 1
        assert [token for token, _ in together[i].top] == best[: tops[i]]
