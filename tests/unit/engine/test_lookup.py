"""What a sequence's own text proposes, and how soon wrong proposals stop."""

import random

import pytest

from glm_cluster.engine import lookup
from glm_cluster.engine.lookup import SUFFIXES, PromptLookup


def test_a_draft_is_what_followed_the_last_occurrence() -> None:
    tokens = [1, 2, 3, 4, 9, 1, 2, 5, 6, 7, 8, 1, 2]
    assert PromptLookup().draft(tokens, 3) == (5, 6, 7)
    assert PromptLookup().draft(tokens, 1) == (5,)


def test_a_longer_suffix_wins_over_a_later_occurrence() -> None:
    assert PromptLookup().draft([7, 1, 2, 3, 4, 8, 1, 2, 5, 6, 7, 1, 2], 2) == (3, 4)


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3, 4, 5], [5, 1, 2, 3, 5]])
def test_nothing_is_drafted_where_nothing_came_before(tokens: list[int]) -> None:
    """Of the last of these one token alone did, which is no reason."""
    assert PromptLookup().draft(tokens, 4) == ()


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_what_repeats_itself_is_drafted_to_go_on_so(period: int) -> None:
    whole = [10 + i % period for i in range(40)]
    assert PromptLookup().draft(whole[: 2 * period + 2], 9) == tuple(whole[2 * period + 2 : 2 * period + 11])


@pytest.mark.parametrize("seed", range(5))
def test_tokens_may_come_one_by_one_or_all_at_once(seed: int) -> None:
    rng = random.Random(seed)
    tokens = [rng.randrange(4) for _ in range(80)]
    growing = PromptLookup()
    drafts = [growing.draft(tokens[:end], 5) for end in range(81)]
    assert drafts == [PromptLookup().draft(tokens[:end], 5) for end in range(81)]
    assert drafts == [_searched(tokens[:end], 5) for end in range(81)]
    assert any(drafts)


def _searched(tokens: list[int], most: int) -> tuple[int, ...]:
    """The same by looking at every place."""
    for length in SUFFIXES:
        for start in range(len(tokens) - 1, length - 1, -1):
            if tokens[start - length : start] == tokens[len(tokens) - length :]:
                return tuple((tokens[start:] * most)[:most])
    return ()


def test_what_is_very_far_back_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "_WINDOW", 10)
    assert PromptLookup().draft([1, 2, 3, *range(20, 26), 1, 2], 1) == (3,)
    assert PromptLookup().draft([1, 2, 3, *range(20, 28), 1, 2], 1) == ()


def test_wrong_drafts_become_rare_and_a_right_one_brings_them_back() -> None:
    guesser, tokens = PromptLookup(), [1, 2, 3] * 5
    at = []
    for step in range(1000):
        if guesser.draft(tokens, 4):
            at.append(step)
            guesser.judge(0)
    assert at[:5] == [0, 2, 6, 14, 30]
    assert len(at) < 40
    while not guesser.draft(tokens, 4):
        pass
    guesser.judge(1)
    assert all(guesser.draft(tokens, 4) for _ in range(20))
