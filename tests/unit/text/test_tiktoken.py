"""A tokenizer.model becomes the tokenizer.json that Transformers would make of it."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from glm_cluster.errors import CheckpointError
from glm_cluster.text.page_tokenizer import PageTokenizer
from glm_cluster.text.tiktoken import CONTROL_TOKENS, tokenizer_json
from glm_cluster.text.tokenizer import Tokenizer

WriteRanks: TypeAlias = Callable[[Path, Iterable[bytes]], Path]
BYTES = [bytes([byte]) for byte in range(256)]
# 256 `ab`, 257 `bc`, 258 `abc` (two ways), 259 `xyz` (no way: neither `xy` nor `yz` is a token)
TOKENS = [*BYTES, b"ab", b"bc", b"abc", b"xyz"]
MIXED = (
    "",
    "Hello, world! It's 12345.67 o'clock, we'LL see\r\n\r\n  \t done  ",
    "你好，世界。今天天气怎么样？１２３",
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # 注释\n\n",
    "🚀😀👨\u200d👩\u200d👧 é e\u0301 ﬁ ñ \u200fالعربية עברית हिन्दी 한국어",
    "SELECT * FROM t WHERE a<=3 AND b!='<|user|>';",
    "机器学习（ML）是AI的一个分支, 见 https://例子.cn/路径?q=1",
    "\x00\x7f\ufffd\ue000   \n \n\t\t x",
    "ﷺ𠜎𠜱𝒳 – — … “引号” 「カギ」ひらがな 她说:\u3000“好的”。\n\n\n",
    *("中" * 300, "a" * 300, " " * 100),
)


@pytest.fixture
def small(write_ranks: WriteRanks, tmp_path: Path) -> Path:
    return write_ranks(tmp_path, TOKENS)


@pytest.fixture(scope="session")
def converted(thudm_directory: Path) -> dict[str, Any]:
    return tokenizer_json(thudm_directory)


@pytest.fixture(scope="session")
def thudm(thudm_directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(thudm_directory)


def test_every_way_to_make_a_token_is_a_merge_and_low_ranks_come_first(small: Path) -> None:
    assert tokenizer_json(small)["model"]["merges"] == [["a", "b"], ["b", "c"], ["a", "bc"], ["ab", "c"]]


def test_small_ranks_encode_as_tiktoken_would(small: Path) -> None:
    tokenizer = Tokenizer.from_directory(small)
    assert tokenizer.encode_batch(["abc", "xyz", "xyzb", " ab1"]) == [
        (258,),
        (259,),  # a whole word that is a token, though no merge leads to it
        (*b"xyzb",),
        (ord(" "), 256, ord("1")),
    ]
    assert tokenizer.decode((258, 0xE4, 0xBD, 0xA0)) == "abc你"


def test_glm4s_control_tokens_stand_in_for_a_missing_list(small: Path) -> None:
    added = tokenizer_json(small)["added_tokens"]
    assert [token["id"] for token in added] == list(range(151329, 151343))
    assert [token["content"] for token in added] == list(CONTROL_TOKENS)
    assert all(token["special"] for token in added)


def test_control_tokens_are_those_of_the_config(small: Path) -> None:
    listed = {"301": {"content": "<sop>", "special": True}, "300": {"content": "[gMASK]", "special": True}}
    listed["310"] = {"content": "<think>", "special": False}
    write_config(small, added_tokens_decoder=listed)
    tokenizer = Tokenizer.from_directory(small)
    assert dict(tokenizer.special_ids) == {"[gMASK]": 300, "<sop>": 301, "<think>": 310}
    assert tokenizer.frame == ((300, 301), ())
    assert tokenizer.decode((300, 310)) == "<think>"
    assert tokenizer.unused_ids(320) == ((260, 300), (302, 310), (311, 320))


def test_every_text_is_opened_by_the_prefix(small: Path) -> None:
    assert Tokenizer.from_directory(small).frame == ((151331, 151333), ())
    assert PageTokenizer.from_directory(small).encode("abc") == [151331, 151333, 258]


def test_tokenizer_json_goes_first(small: Path, tiny: Tokenizer, tiny_content: dict[str, Any]) -> None:
    (small / "tokenizer.json").write_text(json.dumps(tiny_content), encoding="utf-8")
    assert Tokenizer.from_directory(small).special_ids == tiny.special_ids


def test_empty_lines_and_order_do_not_matter(small: Path) -> None:
    expected = tokenizer_json(small)
    file = small / "tokenizer.model"
    file.write_bytes(b"\n".join(reversed(file.read_bytes().splitlines())) + b"\n\n")
    assert tokenizer_json(small) == expected
    assert list(tokenizer_json(small)["model"]["vocab"].values()) == list(range(260))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"\x0a\x0b\x08\xff\xfe<unk> junk of another format", "line 2.* tiktoken's format"),
        (b"YW=I 260\n", "line 261.* is not a base64 token"),
        (b"YWJj\n", "line 261.* is not a base64 token"),
        (b"YWJj x\n", "line 261.* is not a base64 token"),
        (b"YWJj -1\n", "line 261.* is not a base64 token"),
        (b"eHh4 259\n", "line 261, gives rank 259 a second time"),
        (b"eHh4 261\n", "no token of rank 260"),
        (b"YWJj 260\n", "the token b'abc' two ranks"),
    ],
)
def test_malformed_ranks_are_named(small: Path, lines: bytes, message: str) -> None:
    file = small / "tokenizer.model"
    file.write_bytes((b"" if b"junk" in lines else file.read_bytes()) + lines)
    with pytest.raises(CheckpointError, match=message) as caught:
        tokenizer_json(small)
    assert str(file) in caught.value.message


def test_an_empty_file_is_no_tokenizer(small: Path) -> None:
    (small / "tokenizer.model").write_bytes(b"")
    with pytest.raises(CheckpointError, match="single byte 0x00"):
        tokenizer_json(small)


def test_a_vocabulary_without_all_bytes_is_refused(write_ranks: WriteRanks, tmp_path: Path) -> None:
    write_ranks(tmp_path, [token for token in TOKENS if token != b"Q"])
    with pytest.raises(CheckpointError, match="single byte 0x51"):
        tokenizer_json(tmp_path)


def test_control_tokens_may_not_take_a_rank(small: Path) -> None:
    write_config(small, added_tokens_decoder={"259": {"content": "[gMASK]"}, "300": {"content": "<sop>"}})
    with pytest.raises(CheckpointError, match=r"260 ranks, and '\[gMASK\]' has id 259"):
        tokenizer_json(small)


def test_a_config_without_the_prefix_is_refused(small: Path) -> None:
    write_config(small, added_tokens_decoder={"300": {"content": "[gMASK]"}})
    with pytest.raises(CheckpointError, match=r"lists no '<sop>'"):
        tokenizer_json(small)


@pytest.mark.parametrize("decoder", [{"x": {"content": "a"}}, {"300": {}}, {"300": 3}, [1]])
def test_a_malformed_config_is_named(small: Path, decoder: object) -> None:
    write_config(small, added_tokens_decoder=decoder)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json cannot be used"):
        tokenizer_json(small)


def test_without_either_file_both_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read, nor tokenizer\.model"):
        Tokenizer.from_directory(tmp_path)


def test_glm4_becomes_the_published_tokenizer_json(converted: dict[str, Any], glm4_content: dict[str, Any]) -> None:
    """All of it but the prefix, which the published one lacks; the merges in their order."""
    model, published = converted["model"], glm4_content["model"]
    assert len(model["merges"]) == 318_088
    assert model["merges"] == published["merges"]
    assert model["vocab"] == published["vocab"]
    assert model["ignore_merges"] is published["ignore_merges"] is True
    for part in ("added_tokens", "normalizer", "pre_tokenizer"):
        assert converted[part] == glm4_content[part], part


def test_glm4_ids_equal_tiktokens(thudm: Tokenizer, glm4: Tokenizer, shared_data: Path) -> None:
    file = shared_data / "tokenizer" / "vectors_tiktoken_glm4_1m.json"
    cases = json.loads(file.read_text(encoding="utf-8"))["cases"]
    assert thudm.encode_batch([case["text"] for case in cases]) == [tuple(case["ids"]) for case in cases]
    ids = thudm.encode_batch(MIXED)
    assert ids == glm4.encode_batch(MIXED)
    assert [thudm.decode(row) for row in ids] == list(MIXED)


def test_the_seeds_example_opens_twice(thudm_directory: Path, shared_data: Path, tmp_path: Path) -> None:
    """The template writes the prefix and so does the tokenizer, as glm-4-9b-chat's own does."""
    (tmp_path / "tokenizer.model").symlink_to(thudm_directory / "tokenizer.model")
    template = (shared_data / "templates" / "glm-4-9b-chat.jinja").read_text(encoding="utf-8")
    write_config(tmp_path, chat_template=template)
    tokenizer = PageTokenizer.from_directory(tmp_path)
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    assert text == "[gMASK]<sop><|user|>\nhi<|assistant|>"
    assert tokenizer.encode(text) == [151331, 151333, 151331, 151333, 151336, 198, 6023, 151337]
    once = [151331, 151333, 151336, 198, 6023, 151337]
    assert tokenizer.encode(text, add_special_tokens=False) == once
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True) == once


def write_config(directory: Path, **keys: object) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps(keys), encoding="utf-8")
