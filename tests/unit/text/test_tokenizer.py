"""Text becomes the ids it should, and never a control token."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from glm_cluster.errors import CheckpointError
from glm_cluster.text.tokenizer import Plain, Special, Tokenizer
from glm_cluster.text.tokenizer_file import TokenizerFile

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


A = {"Sequence": {"id": "A", "type_id": 0}}
PREFIX = {"SpecialToken": {"id": "prefix", "type_id": 0}}
STOP = {"SpecialToken": {"id": "stop", "type_id": 0}}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
ROBERTA = {
    "type": "RobertaProcessing",
    "cls": ["c", 5],
    "sep": ["s", 6],
    "trim_offsets": True,
    "add_prefix_space": True,
}


def frame_template(*single: dict[str, Any]) -> dict[str, Any]:
    names = {"prefix": [257, 258], "stop": [259]}
    specials = {name: {"id": name, "ids": ids, "tokens": [name] * len(ids)} for name, ids in names.items()}
    pair = [A, {"Sequence": {"id": "B", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": list(single), "pair": pair, "special_tokens": specials}


@pytest.mark.parametrize(
    ("post_processor", "frame"),
    [
        (None, ((), ())),
        (BYTE_LEVEL, ((), ())),
        (frame_template(A), ((), ())),
        (frame_template(PREFIX, A), ((257, 258), ())),
        (frame_template(STOP, PREFIX, A, STOP), ((259, 257, 258), (259,))),
        ({"type": "Sequence", "processors": [BYTE_LEVEL, frame_template(PREFIX, A)]}, ((257, 258), ())),
        (ROBERTA, ((5,), (6,))),
        ({"type": "BertProcessing", "cls": ["c", 5], "sep": ["s", 6]}, ((5,), (6,))),
    ],
)
def test_the_frame_is_what_the_post_processor_puts_round_a_text(
    tiny_content: dict[str, Any], post_processor: object, frame: object
) -> None:
    tokenizer = Tokenizer(tiny_content | {"post_processor": post_processor})
    assert tokenizer.frame == frame
    assert tokenizer.encode_batch(["hi"]) == [(256,)]  # nobody asked for it


@pytest.mark.parametrize(
    "post_processor", [{"type": "Odd"}, frame_template(A, A), frame_template(PREFIX), {"type": "TemplateProcessing"}]
)
def test_a_post_processor_that_is_no_frame_is_refused(
    tiny_directory: Path, tiny_content: dict[str, Any], post_processor: dict[str, Any]
) -> None:
    content = tiny_content | {"post_processor": post_processor}
    (tiny_directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json .*'{post_processor['type']}'"):
        Tokenizer.from_directory(tiny_directory)


def test_the_published_glm4_has_no_frame(glm4: Tokenizer) -> None:
    assert glm4.frame == ((), ())


def test_spans_can_be_worked_out_by_hand(tiny: Tokenizer) -> None:
    [ids] = tiny.encode_batch(["ahié你hi"])
    assert ids == (97, 256, 0xC3, 0xA9, 0xE4, 0xBD, 0xA0, 256)
    assert tiny.spans("ahié你hi", ids) == ((0, 1), (1, 3), (3, 4), (3, 4), (4, 5), (4, 5), (4, 5), (5, 7))
    assert tiny.spans("", ()) == ()
    assert repr(tiny.spans("a", ids[:1])) == "((0, 1),)", "numbers, not truth values, which JSON would show"


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example("<|begin_of_image|>")
@example("Hello, 世界! 🚀😀 é e\u0301 def f(x):\n\treturn  x")
@QUICK
def test_spans_equal_the_librarys_offsets(glm4: Tokenizer, glm4_library: tokenizers.Tokenizer, text: str) -> None:
    """The library counts a character that several tokens share to each of them, too."""
    encoding = glm4_library.encode(text, add_special_tokens=False)
    assert list(glm4.spans(text, encoding.ids)) == encoding.offsets


def test_spans_of_other_ids_are_refused(tiny: Tokenizer) -> None:
    for ids in ((97,), (257, 256), (256, 256)):
        with pytest.raises(ValueError, match="not the encoding"):
            tiny.spans("hia", ids)


def test_ids_that_name_no_token(tiny_content: dict[str, Any]) -> None:
    tiny_content["added_tokens"][3]["id"] = 265
    del tiny_content["model"]["vocab"]["A"]
    file = TokenizerFile(path=Path("tokenizer.json"), content=tiny_content)
    for reader in (Tokenizer(tiny_content), file):
        assert reader.unused_ids(270) == ((65, 66), (260, 265), (266, 270))
        assert reader.unused_ids(263) == ((65, 66), (260, 263))
        assert reader.unused_ids(65) == ()
    tiny_content["model"].pop("vocab")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be used"):
        file.unused_ids(270)


def test_glm4s_padding_rows_name_no_token(glm4: Tokenizer) -> None:
    assert glm4.unused_ids(151552) == ((151343, 151552),)


def test_a_tokenizer_fits_its_model(tiny: Tokenizer, tmp_path: Path) -> None:
    tiny.check_fits(vocab_size=261, special_ids={257, 0, 260}, where=tmp_path)
    tiny.check_fits(vocab_size=301, special_ids=(), where=tmp_path)


@pytest.mark.parametrize(
    ("vocab_size", "special_ids", "message"),
    [
        (260, (), "token with id 260, but the model's vocabulary has 260 rows"),
        (301, (257, 261), "no token with id 261"),
        (301, (151329,), "no token with id 151329"),
        (301, (-1,), "no token with id -1"),
    ],
)
def test_another_models_tokenizer_is_refused(
    tiny: Tokenizer, tmp_path: Path, vocab_size: int, special_ids: tuple[int, ...], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        tiny.check_fits(vocab_size=vocab_size, special_ids=special_ids, where=tmp_path)
    assert str(tmp_path) in caught.value.message


def test_a_hole_is_no_end_token(tiny_content: dict[str, Any], tmp_path: Path) -> None:
    tiny_content["added_tokens"][3]["id"] = 265
    with pytest.raises(CheckpointError, match="no token with id 262"):
        Tokenizer(tiny_content).check_fits(vocab_size=301, special_ids={262}, where=tmp_path)


@pytest.mark.demo
def test_the_demo_model_fits(demo: Tokenizer, demo_directory: Path) -> None:
    config = json.loads((demo_directory / "config.json").read_text(encoding="utf-8"))
    special_ids = {*config["eos_token_id"], config["pad_token_id"]}
    demo.check_fits(vocab_size=config["vocab_size"], special_ids=special_ids, where=demo_directory)


def test_glm4_ids_equal_tiktoken(glm4: Tokenizer, shared_data: Path) -> None:
    file = shared_data / "tokenizer" / "vectors_tiktoken_glm4_1m.json"
    cases = json.loads(file.read_text(encoding="utf-8"))["cases"]
    assert glm4.encode_batch([case["text"] for case in cases]) == [tuple(case["ids"]) for case in cases]


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example("<|begin_of_image|>")
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


@given(ids=st.lists(st.integers(0, 151342), max_size=8))
@QUICK
def test_glm4_spells_as_the_library_does(glm4: Tokenizer, glm4_library: tokenizers.Tokenizer, ids: list[int]) -> None:
    """Control tokens written out, alone and among bytes; those that are padding rows have no spelling."""
    assert glm4.spellings(ids) == [glm4_library.id_to_token(id) for id in ids]
    assert glm4.spelt_out(ids) == glm4_library.decode(ids, skip_special_tokens=False)
    assert (glm4.spellings([151500]), glm4.spelt_out([151500, 10**9])) == ([""], "")


@pytest.fixture(scope="session")
def glm4_library(glm4_directory: Path) -> tokenizers.Tokenizer:
    """The oracle. Hypothesis also tries the strings of our source, control tokens among them: they are text here."""
    library = tokenizers.Tokenizer.from_file(str(glm4_directory / "tokenizer.json"))
    library.encode_special_tokens = True
    return library


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "not a byte-level BPE"),
        ({"decoder": None}, "not a byte-level BPE"),
        ({"model": {"type": "BPE"}}, "cannot be used"),
        ({"post_processor": ["odd"]}, r"cannot be used .*\['odd'\]"),
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


def test_tokens_are_spelled_by_themselves(tiny: Tokenizer) -> None:
    for content, id in tiny.special_ids.items():
        assert tiny.spelling(id) == content.encode()
    (ids,) = tiny.encode_batch(["a漢"])
    assert b"".join(tiny.spelling(id) for id in ids) == "a漢".encode()
    assert tiny.spelling(10**9) == b""
