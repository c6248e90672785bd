"""Tokenizers to test with: a tiny one made here, the demo model's, and GLM-4's own."""

import base64
import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from glm_cluster.model.checkpoints.demo import ensure_demo_model
from glm_cluster.text.alphabet import BYTE_OF, unspell
from glm_cluster.text.tokenizer import Tokenizer

WriteRanks: TypeAlias = Callable[[Path, Iterable[bytes]], Path]


def tiny_tokenizer_json() -> dict[str, Any]:
    """The 256 bytes, one merge (`hi`), two special tokens and two that are only added."""
    vocab = dict(BYTE_OF) | {"hi": 256}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [("<|user|>", True), ("<|assistant|>", True), ("<think>", False), ("</think>", False)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 257 + index, "content": content, "special": special, **flags}
            for index, (content, special) in enumerate(added)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["h", "i"]], "ignore_merges": False},
    }


@pytest.fixture(scope="session")
def write_ranks() -> WriteRanks:
    return _write_ranks


def _write_ranks(directory: Path, tokens: Iterable[bytes]) -> Path:
    """Write a tokenizer.model in which each token's place is its rank."""
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    (directory / "tokenizer.model").write_bytes(b"".join(lines))
    return directory


@pytest.fixture
def tiny_content() -> dict[str, Any]:
    return tiny_tokenizer_json()


@pytest.fixture
def tiny_directory(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text(json.dumps(tiny_tokenizer_json()), encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="session")
def tiny() -> Tokenizer:
    return Tokenizer(tiny_tokenizer_json())


@pytest.fixture(scope="session")
def glm4_directory(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("glm4")
    packed = (shared_data / "tokenizer" / "tokenizer.GLM-4-0414.json.gz").read_bytes()
    (directory / "tokenizer.json").write_bytes(gzip.decompress(packed))
    return directory


@pytest.fixture(scope="session")
def glm4_content(glm4_directory: Path) -> dict[str, Any]:
    return json.loads((glm4_directory / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def thudm_directory(glm4_content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLM-4's vocabulary as THUDM publishes it."""
    vocab: dict[str, int] = glm4_content["model"]["vocab"]
    return _write_ranks(tmp_path_factory.mktemp("thudm"), map(unspell, sorted(vocab, key=vocab.__getitem__)))


@pytest.fixture(scope="session")
def glm4(glm4_directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(glm4_directory)


@pytest.fixture(scope="session")
def demo_directory() -> Path:
    return ensure_demo_model()


@pytest.fixture(scope="session")
def demo(demo_directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(demo_directory)
