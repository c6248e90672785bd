"""A stream's pieces, put together, are the whole; no piece holds half a character."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glm_cluster.text.stream import Detokenizer
from glm_cluster.text.tokenizer import Tokenizer

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
STEPS = st.lists(st.lists(st.integers(0, 2**18), max_size=4), max_size=30)


def streamed(tokenizer: Tokenizer, steps: list[list[int]]) -> str:
    detokenizer = Detokenizer(tokenizer)
    return "".join([*(detokenizer.push(ids) for ids in steps), detokenizer.finish()])


def check(tokenizer: Tokenizer, steps: list[list[int]]) -> None:
    within = [[id % (tokenizer.vocab_size + 8) for id in ids] for ids in steps]  # 8 padding rows too
    assert streamed(tokenizer, within) == tokenizer.decode([id for ids in within for id in ids])


@given(steps=STEPS)
@QUICK
def test_tiny_stream_is_its_decode(tiny: Tokenizer, steps: list[list[int]]) -> None:
    check(tiny, steps)


@given(data=st.binary(max_size=30))
@QUICK
def test_any_bytes_one_token_each(tiny: Tokenizer, data: bytes) -> None:
    assert streamed(tiny, [[byte] for byte in data]) == data.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("said", "shown"),
    [("\n\nhi", "\nhi"), ("\nhi\n", "hi\n"), ("hi\n", "hi\n"), ("\n", ""), (" \nhi", " \nhi"), ("", "")],
)
def test_one_line_break_at_the_beginning_can_be_left_out(tiny: Tokenizer, said: str, shown: str) -> None:
    for steps in ([[byte] for byte in said.encode()], [[], list(said.encode())]):
        detokenizer = Detokenizer(tiny, skip_newline=True)
        assert "".join([*map(detokenizer.push, steps), detokenizer.finish()]) == shown


@given(steps=STEPS)
@QUICK
def test_glm4_stream_is_its_decode(glm4: Tokenizer, steps: list[list[int]]) -> None:
    check(glm4, steps)


@pytest.mark.demo
@given(steps=STEPS)
@QUICK
def test_demo_stream_is_its_decode(demo: Tokenizer, steps: list[list[int]]) -> None:
    check(demo, steps)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@QUICK
def test_every_piece_is_made_of_whole_characters(tiny: Tokenizer, text: str) -> None:
    """One byte a token: a character appears with its last byte, and U+FFFD only where the text has one."""
    detokenizer = Detokenizer(tiny)
    pieces = [detokenizer.push([byte]) for byte in text.encode()]
    assert "".join(pieces) == text
    assert detokenizer.finish() == ""


def test_a_stream_cut_inside_a_character_says_so(tiny: Tokenizer) -> None:
    detokenizer = Detokenizer(tiny)
    assert detokenizer.push("你".encode()[:2]) == ""
    assert detokenizer.finish() == "�"


def test_special_tokens_are_not_shown_and_break_no_character(tiny: Tokenizer) -> None:
    first, second, third = "你".encode()
    detokenizer = Detokenizer(tiny)
    assert [detokenizer.push([id]) for id in (first, second, 257, third)] == ["", "", "", "你"]


def test_streams_do_not_share_state(tiny: Tokenizer) -> None:
    one, other = Detokenizer(tiny), Detokenizer(tiny)
    one.push([0xE4])
    assert other.push([104]) == "h"


def test_control_tokens_are_shown_to_whoever_looks_for_them(tiny: Tokenizer) -> None:
    user, assistant = tiny.special_ids["<|user|>"], tiny.special_ids["<|assistant|>"]
    detokenizer = Detokenizer(tiny, shown={assistant: b"<|assistant|>"})
    assert detokenizer.push([256, user, assistant, 256]) == "hi<|assistant|>hi"
    assert detokenizer.push([256, user]) == "hi"
