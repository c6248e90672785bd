"""Numbers worked out by hand, and those that are none."""

import math
import struct

import numpy as np
import pytest

from glm_cluster.api.scores import Scores, activate, activation_of, rows_of, unit
from glm_cluster.errors import InternalError
from glm_cluster.records import Encoded, ModelInfo

LABELS = ("a", "b", "c")


def info(task, num_labels, problem_type):
    return ModelInfo(
        name="m",
        vocab_size=1,
        max_model_len=1,
        eos_token_ids=(),
        task=task,
        labels=LABELS[:num_labels],
        problem_type=problem_type,
    )


@pytest.mark.parametrize(
    ("task", "num_labels", "problem_type", "activation"),
    [
        ("classify", 3, "single_label_classification", "softmax"),
        ("classify", 3, "multi_label_classification", "sigmoid"),
        ("classify", 3, "regression", "none"),
        ("classify", 3, None, "softmax"),
        ("classify", 1, None, "none"),
        ("classify", 1, "multi_label_classification", "sigmoid"),
        ("classify", 1, "single_label_classification", "softmax"),
        ("classify-tokens", 1, None, "softmax"),
        ("classify-tokens", 3, None, "softmax"),
    ],
)
def test_the_activation_is_the_problems(task, num_labels, problem_type, activation):
    assert activation_of(info(task, num_labels, problem_type)) == activation


def row(*numbers):
    return np.array([numbers], dtype=np.float32)


def test_softmax_by_hand():
    e = math.e
    verdict = Scores(row(2, 0, 1), LABELS, "softmax", raw=False)[0]
    assert verdict.scores == pytest.approx([e**2 / (e**2 + 1 + e), 1 / (e**2 + 1 + e), e / (e**2 + 1 + e)], rel=1e-15)
    assert (verdict.label, verdict.score, verdict.probable) == ("a", verdict.scores[0], None)


def test_sigmoid_by_hand():
    verdict = Scores(row(0, -1, 2), LABELS, "sigmoid", raw=False)[0]
    expected = [0.5, 1 / (1 + math.e), 1 / (1 + math.exp(-2))]
    assert verdict.scores == pytest.approx(expected, rel=1e-15)
    assert (verdict.label, verdict.score, verdict.probable) == ("c", verdict.scores[2], ("a", "c"))


def test_raw_scores_are_the_logits_and_say_the_same():
    verdict = Scores(row(0, -1, 2), LABELS, "sigmoid", raw=True)[0]
    assert (verdict.label, verdict.score, verdict.scores, verdict.probable) == ("c", 2.0, [0.0, -1.0, 2.0], ("a", "c"))


def test_values_have_no_label():
    one = Scores(row(0.25), LABELS[:1], "none", raw=False)[0]
    assert (one.label, one.score, one.scores, one.probable) == (None, 0.25, [0.25], None)
    several = Scores(row(0.25, 2, -1), LABELS, "none", raw=False)[0]
    assert (several.label, several.score, several.scores) == (None, None, [0.25, 2.0, -1.0])


def test_the_first_of_equals_is_best():
    assert Scores(row(1, 3, 3), LABELS, "softmax", raw=False)[0].label == "b"


def test_logits_that_probabilities_cannot_tell_apart_still_order():
    assert Scores(row(80, 81, 0), LABELS, "sigmoid", raw=False)[0].label == "b"


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_largest_logits_give_probabilities(activation):
    largest = float(np.finfo(np.float32).max)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        probabilities = activate(np.array([[largest, -largest, 0.0]]), activation)
    assert probabilities[0, :2].tolist() == [1, 0]
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


def test_probabilities_do_not_depend_on_the_other_rows():
    logits = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    together = Scores(logits, LABELS, "softmax", raw=False)
    assert len(together) == 9
    for index in range(9):
        assert together[index] == Scores(logits[index : index + 1], LABELS, "softmax", raw=False)[0]


def test_a_vector_of_length_one():
    assert unit(np.array([3, 0, -4], dtype=np.float32)).tolist() == pytest.approx([0.6, 0, -0.8])
    big = np.array([3e38, 3e38], dtype=np.float32)  # its square overflows fp32
    assert unit(big).tolist() == pytest.approx([0.5**0.5] * 2)
    assert unit(np.zeros(2, dtype=np.float32)).tolist() == [0, 0]


def encoded(*numbers, num_rows=1, width=None):
    return Encoded(num_rows, width or len(numbers) // num_rows, struct.pack(f"<{len(numbers)}f", *numbers))


def test_rows_are_read_row_by_row():
    rows = rows_of(encoded(1, 2, 3, 4, 5, 6, num_rows=2), num_rows=2, width=3)
    assert rows.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_goes_no_further(number):
    with pytest.raises(InternalError, match="not finite"):
        rows_of(encoded(1, number), num_rows=1)


@pytest.mark.parametrize(
    ("given", "num_rows", "width"),
    [
        (encoded(1, 2), 2, None),
        (encoded(1, 2), 1, 3),
        (encoded(1, 2, width=3), 1, None),
        (encoded(1, 2, 3, num_rows=3), 1, 3),
    ],
)
def test_an_answer_of_another_shape_is_a_defect(given, num_rows, width):
    with pytest.raises(InternalError, match="rows, width, bytes"):
        rows_of(given, num_rows=num_rows, width=width)
