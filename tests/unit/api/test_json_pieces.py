"""JSON in pieces is JSON at one go, and no piece is long to make."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_cluster.api.json_pieces import coalesced, json_pieces

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
BODIES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.lists(SCALARS, max_size=600) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(BODIES)
def test_all_of_it_is_what_the_library_writes(body: object):
    assert b"".join(json_pieces(body)) == json.dumps(body, separators=(",", ":")).encode()


def test_a_long_body_comes_in_pieces():
    body = {"choices": [{"ids": list(range(100_000))} for _ in range(3)]}
    sizes = [len(piece) for piece in json_pieces(body)]
    assert len(sizes) > 20
    assert max(sizes) < 70_000


def test_what_json_has_no_word_for_is_refused():
    with pytest.raises(ValueError, match="JSON compliant"):
        list(json_pieces([float("nan")]))


def test_small_pieces_go_together():
    assert list(coalesced([b"a"] * 3)) == [b"aaa"]
    assert list(coalesced([])) == []
