"""Distinct ids and their counts, token by token as all at once."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from glm_cluster.engine.tally import Tally


@given(chunks=st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=6))
def test_counts_are_those_of_the_whole(chunks: list[list[int]]) -> None:
    tally, tokens = Tally(), [token for chunk in chunks for token in chunk]
    for chunk in chunks:
        tally.add(chunk)
    assert dict(zip(tally.ids, tally.counts, strict=True)) == Counter(tokens)
    assert list(tally.ids) == list(dict.fromkeys(tokens))
    assert tally.num_tokens == len(tokens)
