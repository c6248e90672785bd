"""The page's tokenizer equals Transformers' on the real GLM-4 tokenizer and on the demo model's."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from glm_cluster.errors import CheckpointError, ConfigError, InvalidRequest
from glm_cluster.text.alphabet import CHARACTER_OF
from glm_cluster.text.chat import ChatTemplate
from glm_cluster.text.page_tokenizer import PageTokenizer

TEXTS = [
    *("hi", "", "你好，世界 🚀😀", "  two  spaces , and . \n\n", "[gMASK]<sop><|user|>\nhi<|assistant|>", "12345 it's"),
    *(
        "<|im_start|>user\nhi<|im_end|>",
        "a <|endoftext|> b",
        "<think>x</think>",
        "def f(x):\n\treturn x  # 注释",
        "é e\u0301",
    ),
]
TOOL = {"type": "function", "function": {"name": "天气", "description": "<x>", "parameters": {"type": "object"}}}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "hi <|user|> you"}],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "嗨"},
    ],
    [{"role": "user", "content": "天气?"}, {"role": "assistant", "metadata": "天气", "content": "{}"}],
]
GLM4_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "additional_special_tokens": ["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>"],
    "padding_side": "left",
    "model_max_length": 128000,
    "clean_up_tokenization_spaces": False,
}
BYTE_PREFIX = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|user|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<|user|>": {"id": "<|user|>", "ids": [257], "tokens": ["<|user|>"]}},
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Our tokenizer and the oracle, of one directory."""

    ours: PageTokenizer
    oracle: Any


@pytest.fixture(scope="session")
def glm4_pair(glm4_directory: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp("page")
    (directory / "tokenizer.json").symlink_to(glm4_directory / "tokenizer.json")
    template = (shared_data / "templates" / "glm-4-9b-chat.jinja").read_text(encoding="utf-8")
    write_config(directory, GLM4_CONFIG | {"chat_template": template})
    return load(directory)


@pytest.fixture(scope="session")
def demo_pair(demo_directory: Path) -> Pair:
    return load(demo_directory)


@pytest.fixture(params=["glm4", pytest.param("demo", marks=pytest.mark.demo)])
def pair(request: pytest.FixtureRequest) -> Pair:
    return request.getfixturevalue(f"{request.param}_pair")


def load(directory: Path) -> Pair:
    from transformers import AutoTokenizer

    return Pair(ours=PageTokenizer.from_directory(directory), oracle=AutoTokenizer.from_pretrained(directory))


def write_config(directory: Path, keys: dict[str, Any]) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps(keys), encoding="utf-8")


@pytest.mark.parametrize("add", [True, False])
def test_encode(pair: Pair, add: bool) -> None:
    expected = pair.oracle(TEXTS, add_special_tokens=add)["input_ids"]
    assert pair.ours.encode_batch(TEXTS, add_special_tokens=add) == expected
    assert [pair.ours.encode(text, add) for text in TEXTS] == expected


@pytest.mark.parametrize("skip", [True, False])
def test_decode(pair: Pair, skip: bool) -> None:
    rows = [*pair.ours.encode_batch(TEXTS), [0xE4, 0xBD], [3], []]
    expected = [pair.oracle.decode(row, skip_special_tokens=skip) for row in rows]
    assert pair.ours.batch_decode(rows, skip_special_tokens=skip) == expected
    assert pair.ours.decode(42, skip_special_tokens=skip) == pair.oracle.decode(42, skip_special_tokens=skip)


def test_what_is_decoded_whole_was_the_text(pair: Pair) -> None:
    rows = pair.ours.encode_batch(TEXTS, add_special_tokens=False)
    assert pair.ours.batch_decode(rows) == TEXTS


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chat(pair: Pair, add_generation_prompt: bool) -> None:
    for messages in CHATS:
        text = pair.oracle.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, tools=[TOOL]
        )
        ids = pair.oracle(text, add_special_tokens=False)["input_ids"]
        ours = pair.ours.apply_chat_template
        assert ours(messages, False, add_generation_prompt, tools=[TOOL]) == text
        assert ours(messages, add_generation_prompt=add_generation_prompt, tools=[TOOL]) == ids
        assert ids == pair.oracle.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tools=[TOOL], return_dict=False
        )


@pytest.mark.parametrize("name", ["GLM-4-0414", "GLM-Z1-0414", "GLM-4.6", "glm-edge-chat"])
def test_published_templates_render_as_transformers_does(glm4_pair: Pair, shared_data: Path, name: str) -> None:
    source = (shared_data / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    template = ChatTemplate(source, {}, {})
    for messages in [*CHATS, [{"role": "user", "content": "x", "metadata": None}]]:
        for tools in (None, [TOOL]):
            expected = glm4_pair.oracle.apply_chat_template(
                messages, chat_template=source, tokenize=False, tools=tools, add_generation_prompt=True
            )
            variables = {"tools": tools}
            assert template.render_text(messages, add_generation_prompt=True, variables=variables) == expected


def test_tools_of_a_system_message(glm4_pair: Pair) -> None:
    messages = [{"role": "system", "content": None, "tools": [TOOL, {"type": "python"}]}, *CHATS[0]]
    expected = glm4_pair.oracle.apply_chat_template(messages, tokenize=False)
    assert glm4_pair.ours.apply_chat_template(messages, tokenize=False) == expected
    assert "# 可用工具" in expected


@pytest.mark.parametrize("side", ["left", "right", None])
@pytest.mark.parametrize("options", [{}, {"pad_to_multiple_of": 8}, {"max_length": 5}, {"max_length": 50}])
def test_pad(pair: Pair, side: str | None, options: dict[str, int]) -> None:
    rows = pair.ours.encode_batch(TEXTS)
    strategy = "max_length" if "max_length" in options else "longest"
    expected = pair.oracle.pad({"input_ids": rows}, padding=strategy, padding_side=side, **options)
    if side is None and pair.ours.padding_side != pair.oracle.padding_side:
        expected = pair.oracle.pad({"input_ids": rows}, padding=strategy, padding_side="left", **options)
    assert pair.ours.pad(rows, side, **options) == (expected["input_ids"], expected["attention_mask"])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", [{"max_length": 3}, {"truncation": True}, {"truncation": False, "max_length": 3}])
def test_truncation(pair: Pair, side: str, options: dict[str, Any]) -> None:
    texts = [*TEXTS, "a b c d " * 5]
    pair.oracle.truncation_side = pair.ours.truncation_side = side
    expected = pair.oracle(texts, **options)["input_ids"]
    assert pair.ours.encode_batch(texts, **options) == expected


def test_attributes(pair: Pair) -> None:
    names = ("bos_token", "eos_token", "pad_token", "bos_token_id", "eos_token_id", "pad_token_id")
    names += ("all_special_tokens", "all_special_ids", "vocab_size", "model_max_length")
    assert {name: getattr(pair.ours, name) for name in names} == {name: getattr(pair.oracle, name) for name in names}
    assert len(pair.ours) == len(pair.oracle)


def test_tokens_and_ids(pair: Pair) -> None:
    tokens = ["Ġthe", "<|endoftext|>", "no such token", "a"]
    ids = [0, 2, 300, 49_151, 400_000]
    assert pair.ours.convert_tokens_to_ids(tokens) == pair.oracle.convert_tokens_to_ids(tokens)
    assert pair.ours.convert_tokens_to_ids("a") == pair.oracle.convert_tokens_to_ids("a")
    assert pair.ours.convert_ids_to_tokens(300) == pair.oracle.convert_ids_to_tokens(300)
    for skip in (True, False):
        assert pair.ours.convert_ids_to_tokens(ids, skip) == pair.oracle.convert_ids_to_tokens(ids, skip)


def test_the_alphabet() -> None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    assert bytes_to_unicode() == CHARACTER_OF


@pytest.fixture
def prefixed(tiny_directory: Path, tiny_content: dict[str, Any]) -> Path:
    """The tiny tokenizer with a prefix and a config that names a token the vocabulary lacks."""
    content = tiny_content | {"post_processor": BYTE_PREFIX}
    (tiny_directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    config = {"eos_token": "</think>", "pad_token": "<new>", "extra_special_tokens": {"image_token": "<|assistant|>"}}
    write_config(tiny_directory, {"tokenizer_class": "PreTrainedTokenizerFast", **config})
    return tiny_directory


def test_a_prefix_is_kept_whatever_is_cut(prefixed: Path) -> None:
    tokenizer = PageTokenizer.from_directory(prefixed)
    assert tokenizer.encode("hihihi", max_length=3) == [257, 256, 256]
    assert tokenizer.encode("hihihi", False, max_length=2) == [256, 256]
    tokenizer.truncation_side = "left"
    assert tokenizer.encode("abchi", max_length=3) == [257, ord("c"), 256]
    with pytest.raises(InvalidRequest, match="at least the 1 tokens"):
        tokenizer.encode("hi", max_length=0)


def test_tokens_the_config_names_are_added_and_become_special(prefixed: Path) -> None:
    pair = load(prefixed)
    assert pair.ours.pad_token_id == pair.oracle.pad_token_id == 261
    text = "hi<new></think><think>"
    assert pair.ours.encode(text) == pair.oracle.encode(text) == [257, 256, 261, 260, 259]
    for skip in (True, False):
        assert pair.ours.decode([256, 261, 260, 259], skip) == pair.oracle.decode([256, 261, 260, 259], skip)
    assert pair.ours.all_special_ids == pair.oracle.all_special_ids == [260, 261, 258]


def test_named_tokens_may_be_set(tiny_directory: Path) -> None:
    tokenizer = PageTokenizer.from_directory(tiny_directory)
    assert (tokenizer.pad_token_id, tokenizer.all_special_ids) == (None, [])
    with pytest.raises(ConfigError, match="no padding token"):
        tokenizer.pad([[1]])
    tokenizer.pad_token = "<|user|>"
    assert tokenizer.pad([[1], [], [2, 3]]) == ([[257, 1], [257, 257], [2, 3]], [[0, 1], [0, 0], [1, 1]])
    assert tokenizer.all_special_ids == [257]
    with pytest.raises(ConfigError, match="padding_side"):
        tokenizer.pad([[1]], "middle")


def test_lone_surrogates_are_replaced(tiny_directory: Path) -> None:
    tokenizer = PageTokenizer.from_directory(tiny_directory)
    assert tokenizer.decode(tokenizer.encode("a\ud800")) == "a\ufffd"


def test_without_a_template_chat_is_refused(tiny_directory: Path) -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        PageTokenizer.from_directory(tiny_directory).apply_chat_template(CHATS[0])


def test_a_broken_tokenizer_is_named(tiny_directory: Path, tiny_content: dict[str, Any]) -> None:
    (tiny_directory / "tokenizer.json").write_text(json.dumps(tiny_content | {"post_processor": {"type": "Odd"}}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be used"):
        PageTokenizer.from_directory(tiny_directory)
