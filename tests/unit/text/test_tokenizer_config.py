"""What the files beside the vocabulary say, and what stands where they say nothing."""

import json
from pathlib import Path

import pytest

from glm_cluster.errors import CheckpointError
from glm_cluster.text.tokenizer_config import UNLIMITED, TokenizerConfig


def read(directory: Path, **keys: object) -> TokenizerConfig:
    (directory / "tokenizer_config.json").write_text(json.dumps(keys), encoding="utf-8")
    return TokenizerConfig.from_directory(directory)


def test_defaults(tmp_path: Path) -> None:
    assert TokenizerConfig.from_directory(tmp_path) == TokenizerConfig(
        tokens={},
        extra_tokens=(),
        added_tokens=(),
        chat_template=None,
        padding_side="left",
        truncation_side="right",
        model_max_length=UNLIMITED,
    )


def test_tokens_are_strings_or_mappings_with_their_content(tmp_path: Path) -> None:
    config = read(tmp_path, eos_token={"content": "<e>", "special": True}, pad_token="<p>", bos_token=None, x="no")
    assert config.tokens == {"eos_token": "<e>", "pad_token": "<p>"}


@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_extra_tokens(tmp_path: Path, key: str) -> None:
    assert read(tmp_path, **{key: ["<a>", {"content": "<b>"}]}).extra_tokens == ("<a>", "<b>")


def test_extra_tokens_with_names(tmp_path: Path) -> None:
    config = read(tmp_path, extra_special_tokens={"image_token": "<i>"})
    assert (config.tokens, config.extra_tokens) == ({"image_token": "<i>"}, ())


def test_added_tokens_take_the_form_of_a_tokenizer_json(tmp_path: Path) -> None:
    config = read(tmp_path, added_tokens_decoder={"12": {"content": "b"}, "3": {"content": "a", "special": True}})
    first, second = config.added_tokens
    assert (first["id"], first["content"], first["special"], second["id"]) == (3, "a", True, 12)
    assert first.keys() == {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}


def test_sides_and_length(tmp_path: Path) -> None:
    config = read(tmp_path, padding_side="right", truncation_side="left", model_max_length=128000)
    assert (config.padding_side, config.truncation_side, config.model_max_length) == ("right", "left", 128000)


@pytest.mark.parametrize(
    "keys", [{"padding_side": "middle"}, {"model_max_length": "long"}, {"added_tokens_decoder": {"1": {}}}]
)
def test_malformed_keys_are_refused(tmp_path: Path, keys: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json cannot be used"):
        read(tmp_path, **keys)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.json"])
@pytest.mark.parametrize(("content", "message"), [(b"{", "not JSON"), (b"[]", "a mapping"), (b"\xff", "not UTF-8")])
def test_malformed_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} .*{message}"):
        TokenizerConfig.from_directory(tmp_path)
