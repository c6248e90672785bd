"""Text becomes the ids it should, and never a control token."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glm_cluster.errors import CheckpointError
from glm_cluster.text.tokenizer import Plain, Special, Tokenizer

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)


def test_ids_can_be_worked_out_by_hand(tiny: Tokenizer) -> None:
    assert tiny.encode_batch(["hi", "ih", ""]) == [(256,), (105, 104), ()]


def test_segments_become_control_tokens_and_text(tiny: Tokenizer) -> None:
    text = (Special(257), Plain("hi<|user|>"), Special(258))
    [ids] = tiny.encode_batch([text])
    assert ids == (257, 256, *b"<|user|>", 258)


def test_a_batch_keeps_its_order_when_strings_and_segments_are_mixed(tiny: Tokenizer) -> None:
    texts = ["a", (Special(257), Plain("b"), Plain("c")), "d", (), (Special(258),)]
    assert tiny.encode_batch(texts) == [(97,), (257, 98, 99), (100,), (), (258,)]


@pytest.mark.parametrize("name", ["tiny", "glm4", pytest.param("demo", marks=pytest.mark.demo)])
def test_no_special_string_in_text_becomes_its_token(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    controls = set(tokenizer.special_ids.values())
    texts = [
        form.format(special) for special in tokenizer.special_ids for form in ("{0}", "a {0}b", "{0}{0}", " {0}\n")
    ]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert not controls & set(ids), text
        assert tokenizer.decode(ids) == text


def test_decode_hides_what_is_flagged_special_and_nothing_else(tiny: Tokenizer) -> None:
    assert tiny.decode((257, 256, 259, 104, 260, 258)) == "hi<think>h</think>"


def test_decode_survives_broken_utf8_and_ids_of_padding_rows(tiny: Tokenizer) -> None:
    assert tiny.decode((0xE4, 0xBD, 104, 99999)) == "�h"


def test_lone_surrogates_do_not_fail_the_batch(tiny: Tokenizer) -> None:
    good, bad = tiny.encode_batch(["hi", "a\ud800b😀"])
    assert good == (256,)
    assert tiny.decode(bad) == "a�b😀"


def test_vocab_size_counts_added_tokens(tiny: Tokenizer) -> None:
    assert tiny.vocab_size == 261


def test_glm4_ids_equal_tiktoken(glm4: Tokenizer, shared_data: Path) -> None:
    file = shared_data / "tokenizer" / "vectors_tiktoken_glm4_1m.json"
    cases = json.loads(file.read_text(encoding="utf-8"))["cases"]
    assert glm4.encode_batch([case["text"] for case in cases]) == [tuple(case["ids"]) for case in cases]


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@QUICK
def test_glm4_equals_the_library_on_ordinary_text(
    glm4: Tokenizer, glm4_library: tokenizers.Tokenizer, text: str
) -> None:
    [ids] = glm4.encode_batch([text])
    assert list(ids) == glm4_library.encode(text, add_special_tokens=False).ids
    assert glm4.decode(ids) == text


@given(ids=st.lists(st.integers(0, 151342), max_size=40))
@QUICK
def test_glm4_decodes_as_the_library_does(glm4: Tokenizer, glm4_library: tokenizers.Tokenizer, ids: list[int]) -> None:
    assert glm4.decode(ids) == glm4_library.decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="session")
def glm4_library(glm4_directory: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(glm4_directory / "tokenizer.json"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "not a byte-level BPE"),
        ({"decoder": None}, "not a byte-level BPE"),
        ({"model": {"type": "BPE"}}, "cannot be used"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]}}, "cannot be used"),
    ],
)
def test_other_tokenizers_are_refused(tiny_directory: Path, change: dict[str, object], message: str) -> None:
    file = tiny_directory / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_directory(tiny_directory)


def test_a_truncated_file_is_named(tiny_directory: Path) -> None:
    file = tiny_directory / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8")[:1000], encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not JSON"):
        Tokenizer.from_directory(tiny_directory)


def test_a_tokenizer_that_forges_control_tokens_is_refused(tiny_directory: Path) -> None:
    """With `ignore_merges` a word that stands in the vocabulary becomes its id whatever it is."""
    file = tiny_directory / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["vocab"]["STOP"] = 261
    content["model"]["ignore_merges"] = True
    content["added_tokens"].append({**content["added_tokens"][0], "id": 261, "content": "STOP"})
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match="'STOP'"):
        Tokenizer.from_directory(tiny_directory)
