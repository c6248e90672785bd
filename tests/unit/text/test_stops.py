"""Stop strings: the first to be complete ends the text, however it is cut."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_cluster.text.stops import StopMatcher, StopStrings

texts = st.text("ab\n漢", max_size=30)
stops = st.lists(st.text("ab\n漢", min_size=1, max_size=5), min_size=1, max_size=4)


def expected(text, stops, include):
    """Character by character, by the definition: the first to be complete, the longest of several."""
    for end in range(1, len(text) + 1):
        if ending := [stop for stop in stops if text[:end].endswith(stop)]:
            found = max(ending, key=len)
            return (text[:end] if include else text[: end - len(found)]), found
    return text, None


def run(pieces, stops, include):
    matcher = StopMatcher(StopStrings(stops), include=include)
    shown = []
    for piece in pieces:
        shown.append(matcher.push(piece))
        if matcher.matched is not None:
            return "".join(shown), matcher.matched
    return "".join((*shown, matcher.finish())), None


def cut(text, places):
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@settings(deadline=None)
@given(texts, stops, st.lists(st.integers(0, 100), max_size=8), st.booleans())
def test_any_cut_gives_the_same(text, stops, places, include):
    assert run(cut(text, places), stops, include) == expected(text, stops, include)


@settings(deadline=None)
@given(texts, stops)
def test_no_more_is_kept_back_than_may_become_a_stop_string(text, stops):
    matcher = StopMatcher(StopStrings(stops), include=False)
    shown = ""
    for end, char in enumerate(text, 1):
        shown += matcher.push(char)
        if matcher.matched is not None:
            return
        held = text[len(shown) : end]
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(("include", "shown"), [(False, "x"), (True, "xab")])
def test_what_comes_behind_the_match_is_cut_off(include, shown):
    assert run(["xabyz"], ["ab"], include) == (shown, "ab")


def test_the_first_to_be_complete_wins_over_the_first_to_begin():
    assert run(["abcd"], ["abcd", "bc"], False) == ("a", "bc")
    assert run(["abc"], ["c", "bc"], False) == ("a", "bc")


def test_a_stop_string_that_ends_while_unarmed_is_text():
    matcher = StopMatcher(StopStrings(["ab", "bc"]), include=False)
    assert matcher.push("ab", armed=False) == ""
    assert matcher.push("c") == "a"
    assert matcher.matched == "bc"
    matcher = StopMatcher(StopStrings(["ab"]), include=False)
    assert matcher.push("ab", armed=False) + matcher.push("x") + matcher.finish() == "abx"
    assert matcher.matched is None
