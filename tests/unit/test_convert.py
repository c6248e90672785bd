"""A converted directory is whole: transformers and we load weights, tokenizer and template from it alike."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from support.chatglm import chatglm_oracle, write_chatglm, write_thudm_tokenizer
from support.checkpoints import write_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from glm_cluster.convert import convert_checkpoint
from glm_cluster.errors import CheckpointError, ConfigError
from glm_cluster.model.loading import load_model
from glm_cluster.model.ranks import Ranks
from glm_cluster.text.page_tokenizer import PageTokenizer

TEXTS = ("Hello, world!\n 12345", "你好，世界。", "<|user|>\nhi<|assistant|>", "  def f(x):\n\treturn x  🚀", "")
IDS = torch.randint(2, 301, (1, 21), generator=torch.Generator().manual_seed(8))


@pytest.fixture(scope="module")
def thudm(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As glm-4-9b-chat is published, but tiny: fused weights in two files, tokenizer.model, remote code."""
    directory = write_chatglm(tmp_path_factory.mktemp("thudm"), num_files=2)
    write_thudm_tokenizer(directory, shared_data, "glm-4-9b-chat.jinja")
    (directory / "modeling_chatglm.py").write_text("raise SystemExit('remote code was run')\n")
    (directory / "LICENSE").write_text("The glm-4-9b License\n")
    (directory / "pytorch_model.bin").write_bytes(b"a pickle that nobody opens")
    return directory


@pytest.fixture(scope="module")
def converted(thudm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "glm"
    convert_checkpoint(thudm, target)
    return target


def test_it_holds_hfs_files_and_no_code(converted: Path) -> None:
    assert sorted(path.name for path in converted.iterdir()) == [
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert not list(converted.parent.glob(".*")), "nothing is left of the work"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(converted.stat().st_mode) == 0o777 & ~umask


@torch.inference_mode()
def test_weights_are_equal_on_both_sides(converted: Path, thudm: Path) -> None:
    expected = chatglm_oracle(thudm)(IDS).logits
    assert torch.equal(AutoModelForCausalLM.from_pretrained(converted).eval()(IDS).logits, expected)
    for directory in (converted, thudm):
        assert torch.equal(load_model(directory, ranks=Ranks.single())(IDS).logits, expected)


def test_tokenizers_are_equal_on_both_sides(converted: Path, thudm: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(converted), PageTokenizer.from_directory(converted)
    source = PageTokenizer.from_directory(thudm)
    for text in TEXTS:
        for specials in (True, False):
            expected = source.encode(text, specials)
            assert ours.encode(text, specials) == expected
            assert theirs(text, add_special_tokens=specials)["input_ids"] == expected
        assert theirs.decode(source.encode(text)) == source.decode(source.encode(text))
    assert theirs("x")["input_ids"][:2] == [151331, 151333], "[gMASK]<sop> opens a text, as with THUDM's tokenizer"
    assert (theirs.padding_side, theirs.pad_token_id, theirs.eos_token_id) == ("left", 151329, 151329)
    messages = [{"role": "user", "content": "你好"}]
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == source.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "[gMASK]<sop><|user|>\n你好<|assistant|>"


def test_a_tokenizer_json_is_copied_as_it_is(converted: Path, tmp_path: Path) -> None:
    convert_checkpoint(converted, tmp_path / "again", max_shard_bytes=100_000)
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "generation_config.json")
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (converted / name).read_bytes()
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 3


def test_weights_alone_convert_too(tmp_path: Path) -> None:
    convert_checkpoint(write_chatglm(tmp_path / "source"), tmp_path / "deep" / "target")
    assert not list((tmp_path / "deep" / "target").glob("tokenizer*"))


def test_an_empty_target_is_used(tmp_path: Path) -> None:
    source, target = write_chatglm(tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    seen: list[tuple[str, float]] = []
    convert_checkpoint(source, target, on_progress=lambda stage, done: seen.append((stage, done)))
    assert (target / "config.json").is_file()
    assert seen[-1] == ("convert", 1.0)


def test_what_cannot_be_a_target_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    held = tmp_path / "held"
    held.mkdir()
    (held / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(source)
    for target, why in ((held, "already holds"), (tmp_path / "file", "already holds"), (link, "is the source itself")):
        with pytest.raises(ConfigError, match=why):
            convert_checkpoint(source, target)
    assert (held / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ConfigError, match="1 byte"):
        convert_checkpoint(source, tmp_path / "new", max_shard_bytes=0)
    with pytest.raises(CheckpointError, match="no such directory"):
        convert_checkpoint(tmp_path / "nowhere", tmp_path / "new")


@pytest.mark.parametrize("fault", ["truncated", "missing", "pickle", "layout"])
def test_nothing_stands_where_it_failed(tmp_path: Path, fault: str) -> None:
    source = write_chatglm(tmp_path / "source", num_files=3)
    second = sorted(source.glob("*.safetensors"))[1]
    if fault == "truncated":
        second.write_bytes(second.read_bytes()[:-100])
    elif fault == "missing":
        second.unlink()
    elif fault == "pickle":
        for path in source.glob("*.safetensors*"):
            path.rename(path.with_suffix(".bin"))
    else:
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, "rmsnorm": False}))
    with pytest.raises(CheckpointError):
        convert_checkpoint(source, tmp_path / "out" / "target", max_shard_bytes=100_000)
    assert list((tmp_path / "out").iterdir()) == []
