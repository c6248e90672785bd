"""Weights written anew load in transformers and give the same bits; memory holds one shard at a time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.chatglm import chatglm_oracle, hf_names, write_chatglm
from support.checkpoints import TINY, edit_json, write_checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForSequenceClassification,
    GlmModel,
)

from glm_cluster.model.checkpoints import convert
from glm_cluster.model.checkpoints.convert import convert_weights
from glm_cluster.model.loading import load_model
from glm_cluster.model.ranks import Ranks

IDS = torch.randint(2, 301, (2, 21), generator=torch.Generator().manual_seed(8))
WHOLE = 10**9
GRID: list[dict[str, Any]] = [
    {},
    {"multi_query_attention": False, "num_files": 3},
    {"add_qkv_bias": False, "tie_word_embeddings": True},
    {"torch_dtype": "bfloat16", "num_files": 2},
]


def _convert(source: Path, target: Path, limit: int = WHOLE) -> Path:
    target.mkdir()
    convert_weights(source, target, max_shard_bytes=limit)
    return target


@pytest.mark.parametrize("limit", [WHOLE, 100_000])
@pytest.mark.parametrize("changes", GRID, ids=str)
@torch.inference_mode()
def test_thudms_weights_load_in_transformers(tmp_path: Path, changes: dict, limit: int) -> None:
    source = write_chatglm(tmp_path / "source", **changes)
    target = _convert(source, tmp_path / "target", limit)
    dtype = changes.get("torch_dtype", "float32")
    expected = chatglm_oracle(source, dtype)(IDS).logits
    theirs = AutoModelForCausalLM.from_pretrained(target, dtype="auto").eval()
    assert type(theirs).__name__ == "GlmForCausalLM"
    assert theirs.config.rope_parameters["rope_theta"] == 5e6
    assert theirs.dtype == getattr(torch, dtype)
    assert torch.equal(theirs(IDS).logits, expected)
    assert torch.equal(load_model(target, ranks=Ranks.single())(IDS).logits, expected)
    assert theirs.generation_config.temperature == 0.8


def test_shards_and_index_are_hfs(tmp_path: Path) -> None:
    source = write_chatglm(tmp_path / "source", num_files=2)
    target = _convert(source, tmp_path / "target", 100_000)
    files = sorted(target.glob("*.safetensors"))
    assert [f.name for f in files] == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) > 4
    index = json.loads((target / "model.safetensors.index.json").read_text())
    held = {f.name: load_file(f) for f in files}
    assert index["weight_map"] == {name: file for file, tensors in held.items() for name in tensors}
    tensors = hf_names(source)
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in tensors.values())
    assert index["metadata"]["total_parameters"] == sum(t.numel() for t in tensors.values())
    sizes = [sum(t.numel() * 4 for t in part.values()) for part in held.values()]
    assert all(size <= 100_000 or len(part) == 1 for size, part in zip(sizes, held.values(), strict=True))
    assert {f.stat().st_mode & 0o777 for f in files} == {0o644}
    assert not list(target.glob("*.part"))


def test_a_shard_is_written_before_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a model larger than memory could not be converted."""
    source = write_chatglm(tmp_path / "source")
    target = tmp_path / "target"
    target.mkdir()
    most_held, seen = 0, []
    add = convert.ShardWriter.add

    def spy(writer: convert.ShardWriter, name: str, tensor: torch.Tensor) -> None:
        nonlocal most_held
        add(writer, name, tensor)
        most_held = max(most_held, sum(t.numel() * 4 for t in writer._held.values()))

    monkeypatch.setattr(convert.ShardWriter, "add", spy)
    convert_weights(
        source,
        target,
        max_shard_bytes=100_000,
        on_read=lambda done, _: seen.append((done, len(list(target.glob("*.part"))))),
    )
    assert most_held <= 100_000
    assert seen == sorted(seen)
    assert seen[len(seen) // 2][1] >= 2, "files grow while tensors are read"


@torch.inference_mode()
def test_hfs_own_are_resharded(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", dtype="bfloat16")
    edit_json(source / "config.json", auto_map={"AutoModel": "modeling_x.X"}, own_key=7)
    target = _convert(source, tmp_path / "target", 100_000)
    assert len(list(target.glob("*.safetensors"))) > 3
    theirs = AutoModelForCausalLM.from_pretrained(target, dtype="auto").eval()
    expected = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()(IDS).logits
    assert torch.equal(theirs(IDS).logits, expected)
    config = json.loads((target / "config.json").read_text())
    assert config["own_key"] == 7
    assert "auto_map" not in config


@torch.inference_mode()
def test_a_classifier_stays_one(tmp_path: Path) -> None:
    GlmForSequenceClassification(GlmConfig(**TINY, num_labels=3)).save_pretrained(tmp_path / "source")
    target = _convert(tmp_path / "source", tmp_path / "target")
    theirs = AutoModelForSequenceClassification.from_pretrained(target).eval()
    expected = AutoModelForSequenceClassification.from_pretrained(tmp_path / "source").eval()(IDS).logits
    assert torch.equal(theirs(IDS).logits, expected)


@torch.inference_mode()
def test_a_bare_decoder_keeps_its_names(tmp_path: Path) -> None:
    GlmModel(GlmConfig(**TINY)).save_pretrained(tmp_path / "source")
    target = _convert(tmp_path / "source", tmp_path / "target")
    names = {name for path in (tmp_path / "source").glob("*.safetensors") for name in load_file(path)}
    assert set(load_file(target / "model.safetensors")) == names


@torch.inference_mode()
def test_glm4_keeps_its_four_norms(tmp_path: Path) -> None:
    torch.manual_seed(3)
    Glm4ForCausalLM(Glm4Config(**TINY)).save_pretrained(tmp_path / "source")
    target = _convert(tmp_path / "source", tmp_path / "target")
    theirs = AutoModelForCausalLM.from_pretrained(target).eval()
    assert type(theirs) is Glm4ForCausalLM
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "source").eval()(IDS).logits
    assert torch.equal(theirs(IDS).logits, expected)
