"""A row's past is the sequence's tokens and the right guesses before it, however they came to be known."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from glm_cluster.engine.past import Draw, Past
from glm_cluster.records import SamplingParams

PROMPT = [7, 8, 7]


def past(output: list[int], **asked: object) -> Past:
    return Past(SamplingParams(max_tokens=9, **asked), PROMPT + output, len(PROMPT))


def test_a_tally_follows_drafts_and_then_the_tokens_they_became() -> None:
    tokens = [*PROMPT, 1]
    one = Past(SamplingParams(max_tokens=9), tokens, len(PROMPT))
    assert list(one.said(()).ids) == [1]
    assert list(one.said((2, 1)).counts) == [2, 1]
    assert list(one.seen((2, 1)).ids) == [7, 8, 1, 2]
    tokens += [2, 1, 5]
    assert dict(zip(one.said(()).ids, one.said(()).counts, strict=True)) == {1: 2, 2: 1, 5: 1}
    assert dict(zip(one.seen((8,)).ids, one.seen((8,)).counts, strict=True)) == {7: 2, 8: 2, 1: 2, 2: 1, 5: 1}


class Notes:
    """A constraint that remembers what it was given, a part at a time."""

    def __init__(self) -> None:
        self.parts: list[list[int]] = []

    @property
    def num_taken(self) -> int:
        return sum(map(len, self.parts))

    def take(self, tokens: Sequence[int]) -> None:
        self.parts.append([*tokens])

    def allowed(self) -> NDArray[np.int32]:
        return np.array([self.num_taken], dtype=np.int32)


def test_a_grammar_is_given_each_token_of_output_once() -> None:
    """An output of ten thousand tokens was given whole for each of them."""
    notes, tokens = Notes(), [*PROMPT, 1, 2]
    one = Past(SamplingParams(max_tokens=9), tokens, len(PROMPT), notes)
    assert one.allowed(()) == [2]
    assert one.allowed((3,)) == [3]
    assert one.allowed((3, 4)) == [4]
    tokens += [3, 4, 5]
    assert one.allowed(()) == [5]
    assert one.allowed((6, 7)) == [7]
    assert notes.parts == [[1, 2], [3], [4], [5], [6, 7]]
    assert past([]).allowed(()) is None


@pytest.mark.parametrize(("count", "last"), [(0, ()), (1, (4,)), (2, (3, 4)), (3, (2, 3, 4)), (9, (1, 2, 3, 4))])
def test_the_last_output_ends_in_drafts_and_never_reaches_into_the_prompt(count: int, last: tuple[int, ...]) -> None:
    assert Draw(past([1, 2]), (3, 4)).last_output(count) == last
    assert Draw(past([1, 2, 3, 4])).last_output(count) == last
    assert Draw(past([]), (1, 2, 3, 4)).last_output(count) == last


def test_stop_tokens_are_forbidden_until_there_is_enough_output() -> None:
    early = past([1, 2], min_tokens=3, stop_token_ids=(5, 6))
    assert Draw(early).forbidden() == [5, 6]
    assert Draw(early, (4,)).forbidden() == []


@pytest.mark.parametrize(
    ("output", "forbidden"),
    [([], [3]), ([7], [3]), ([1], [3, 2]), ([9, 1], [3, 2]), ([1, 2], [3, 4]), ([1, 2, 5], [3])],
)
def test_a_bad_word_is_forbidden_its_end_where_the_output_has_the_rest(output: list[int], forbidden: list[int]) -> None:
    """Over the output alone: the prompt ends with 8, 7."""
    words = ((3,), (1, 2), (1, 2, 4), (8, 7, 6))
    assert Draw(past(output, bad_words=words)).forbidden() == forbidden
    assert Draw(past([], bad_words=words), tuple(output)).forbidden() == forbidden


def test_only_who_asks_has_logits_edited() -> None:
    plain = {"temperature": 0.5, "top_k": 2, "top_p": 0.5, "min_p": 0.1, "seed": 3, "stop_token_ids": (1,)}
    assert not past([], **plain, logprobs=3, prompt_logprobs=1).edits_logits
    for name, value in {
        "min_tokens": 1,
        "presence_penalty": -0.1,
        "frequency_penalty": 0.1,
        "repetition_penalty": 0.9,
        "logit_bias": ((1, 1.0),),
        "allowed_token_ids": (),
        "bad_words": ((1,),),
    }.items():
        assert past([], **{name: value}).edits_logits, name
