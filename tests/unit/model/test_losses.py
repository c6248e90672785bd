"""The losses on numbers that one can work out; parity with transformers is in `parity/test_classifiers`."""

import math

import pytest
import torch

from glm_cluster.model.losses import causal_lm_loss, problem_type_of, sequence_loss, token_loss

EVEN = torch.zeros(1, 3, 4)  # every token equally likely: log 4 a token
SURE = torch.tensor([[[9.0, 0, 0, 0], [0, 9.0, 0, 0], [0, 0, 9.0, 0]]])


def test_each_position_is_asked_for_the_next_token() -> None:
    assert float(causal_lm_loss(SURE, torch.tensor([[3, 0, 1]]))) < 1e-3
    assert float(causal_lm_loss(SURE, torch.tensor([[0, 1, 2]]))) > 8


def test_ignored_labels_do_not_count() -> None:
    loss = causal_lm_loss(torch.cat([SURE, SURE]), torch.tensor([[3, 0, -100], [3, -100, -100]]))
    assert float(loss) == pytest.approx(math.log(1 + 3 * math.exp(-9)), rel=1e-3)


def test_a_sum_is_divided_by_what_the_caller_counted() -> None:
    labels = torch.tensor([[1, 1, 1]])
    assert float(causal_lm_loss(EVEN, labels, 8)) == pytest.approx(2 * math.log(4) / 8)
    assert float(causal_lm_loss(EVEN, labels, torch.tensor(4))) == pytest.approx(2 * math.log(4) / 4)
    assert float(causal_lm_loss(EVEN, labels)) == pytest.approx(math.log(4))


def test_low_precision_is_widened_first() -> None:
    assert causal_lm_loss(EVEN.bfloat16(), torch.tensor([[1, 1, 1]])).dtype == torch.float32
    assert token_loss(EVEN.half(), torch.tensor([[1, 1, 1]])).dtype == torch.float32


def test_token_labels_are_not_shifted() -> None:
    assert float(token_loss(SURE, torch.tensor([[0, 1, -100]]))) < 1e-3


@pytest.mark.parametrize(
    ("labels", "num_labels", "kind"),
    [
        (torch.tensor([0.5]), 1, "regression"),
        (torch.tensor([1]), 1, "regression"),
        (torch.tensor([1]), 2, "single_label_classification"),
        (torch.tensor([1], dtype=torch.int32), 3, "single_label_classification"),
        (torch.tensor([[0.0, 1.0]]), 2, "multi_label_classification"),
    ],
)
def test_labels_show_the_problem(labels: torch.Tensor, num_labels: int, kind: str) -> None:
    assert problem_type_of(labels, num_labels) == kind


def test_sequence_losses() -> None:
    column = torch.tensor([[1.0], [2.0]])
    assert float(sequence_loss(column, torch.tensor([0.0, 0.0]), "regression")) == pytest.approx(2.5)
    wide = torch.zeros(2, 3)
    assert float(sequence_loss(wide, torch.ones(2, 3), "regression")) == 1.0
    single = sequence_loss(wide, torch.tensor([1, -100]), "single_label_classification")
    assert float(single) == pytest.approx(math.log(3))
    assert float(sequence_loss(wide, torch.ones(2, 3), "multi_label_classification")) == pytest.approx(math.log(2))


def test_an_unknown_problem_is_a_runtime_error() -> None:
    with pytest.raises(RuntimeError, match="Invalid problem type: ranking"):
        sequence_loss(torch.zeros(1, 2), torch.tensor([0]), "ranking")
