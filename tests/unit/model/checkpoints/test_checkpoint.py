"""Bad files are refused before a weight is used, with the file and the tensor named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.checkpoints import edit_json

from glm_cluster.errors import CheckpointError
from glm_cluster.model.checkpoints.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.glm import GlmForCausalLM
from glm_cluster.model.loading import load_model
from glm_cluster.model.ranks import Ranks
from glm_cluster.model.sharding import Sharding

TENSOR, NORM = "model.layers.1.mlp.down_proj.weight", "model.norm.weight"
DTYPE_KEYS = ("dtype", "torch_dtype")


def _load(directory: Path) -> None:
    load_model(directory, ranks=Ranks.single())


@pytest.fixture
def single(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint(), tmp_path / "single"))


@pytest.fixture
def sharded(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint(max_shard_size="200KB"), tmp_path / "sharded"))


def _rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_an_index_and_a_single_file_load_the_same(single: Path, sharded: Path) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 2
    one, many = (load_model(d, ranks=Ranks.single()).state_dict() for d in (single, sharded))
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_missing_tensor(single: Path) -> None:
    _rewrite(single / SINGLE_FILE, lambda t: t.pop(TENSOR))
    with pytest.raises(CheckpointError, match=f"{TENSOR}' is missing"):
        _load(single)


def test_unexpected_tensor(single: Path) -> None:
    _rewrite(single / SINGLE_FILE, lambda t: t.update({"model.extra.weight": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'model.extra.weight' has no place"):
        _load(single)


def test_wrong_shape(single: Path) -> None:
    _rewrite(single / SINGLE_FILE, lambda t: t.update({TENSOR: torch.zeros(64, 127)}))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor '{TENSOR}' has shape \[64, 127\]"):
        _load(single)


def test_wrong_dtype(single: Path) -> None:
    _rewrite(single / SINGLE_FILE, lambda t: t.update({TENSOR: torch.zeros(64, 128, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor '{TENSOR}' has dtype I8"):
        _load(single)


def test_truncated_file(single: Path) -> None:
    path = single / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file") as raised:
        _load(single)
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    last = max(header.keys() - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])
    assert f"ends before tensor '{last}'" in raised.value.message


def test_the_first_tensor_that_a_truncated_file_lacks_is_named(single: Path) -> None:
    path = single / SINGLE_FILE
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8:start])
    path.write_bytes(path.read_bytes()[: start + header[TENSOR]["data_offsets"][1] - 1])
    with pytest.raises(CheckpointError, match=f"ends before tensor '{TENSOR}'"):
        _load(single)


@pytest.mark.parametrize("size", [0, 7, 8, 100])
def test_a_file_cut_in_its_header_names_no_tensor(single: Path, size: int) -> None:
    path = single / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"not a whole safetensors file") as raised:
        _load(single)
    assert "ends before" not in raised.value.message


def test_truncated_shard_is_named(sharded: Path) -> None:
    path = sorted(sharded.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=path.name):
        _load(sharded)


def test_missing_shard_is_named(sharded: Path) -> None:
    path = sorted(sharded.glob("*.safetensors"))[1]
    names = load_file(path).keys()
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{path.name}', which does not exist") as raised:
        _load(sharded)
    assert any(f"tensor '{name}' should be in it" in raised.value.message for name in names)


@torch.inference_mode()
def test_of_an_index_and_a_single_file_the_latter_is_read_as_in_transformers(single: Path, sharded: Path) -> None:
    _rewrite(single / SINGLE_FILE, lambda t: t[NORM].mul_(2))
    shutil.copy(single / SINGLE_FILE, sharded / SINGLE_FILE)
    theirs = transformers.GlmForCausalLM.from_pretrained(sharded).state_dict()[NORM]
    assert torch.equal(load_model(sharded, ranks=Ranks.single()).state_dict()[NORM], theirs)
    assert torch.equal(theirs, load_file(single / SINGLE_FILE)[NORM])


def test_rotary_buffers_of_older_exports_are_ignored(single: Path) -> None:
    _rewrite(
        single / SINGLE_FILE,
        lambda t: t.update(
            {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8), "model.rotary_emb.inv_freq": torch.ones(8)}
        ),
    )
    _load(single)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("max_shard_size", ["50GB", "200KB"])
def test_a_config_without_a_dtype_means_the_stored_one(
    checkpoint: Callable[..., Path], tmp_path: Path, stored: str, max_shard_size: str
) -> None:
    """It meant float32: twice the memory. The engine's float16 is bfloat16, as ever."""
    directory = Path(shutil.copytree(checkpoint(dtype=stored, max_shard_size=max_shard_size), tmp_path / "copy"))
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if k not in DTYPE_KEYS}))
    theirs = transformers.GlmForCausalLM.from_pretrained(directory, dtype="auto").dtype
    assert GlmForCausalLM.from_pretrained(directory).dtype == theirs == getattr(torch, stored)
    engines = load_model(directory, ranks=Ranks.single()).dtype
    assert engines == (torch.bfloat16 if stored == "float16" else theirs)
    assert load_model(directory, ranks=Ranks.single(), dtype="float32").dtype == torch.float32


def test_a_config_with_a_dtype_is_taken_at_its_word(single: Path) -> None:
    config = GlmConfig.from_directory(single).replace(dtype="bfloat16")
    assert Checkpoint.open(single, config).with_stored_dtype(config) is config


def test_tensor_not_in_the_file_the_index_names(sharded: Path) -> None:
    index = json.loads((sharded / INDEX_FILE).read_text())
    home = index["weight_map"][TENSOR]
    other = next(f for f in index["weight_map"].values() if f != home)
    edit_json(sharded / INDEX_FILE, weight_map={**index["weight_map"], TENSOR: other})
    with pytest.raises(
        CheckpointError, match=rf"{home}: tensor '{TENSOR}' is stored here, while .* places it in {other}"
    ):
        _load(sharded)


def test_tensor_in_no_file(sharded: Path) -> None:
    file = json.loads((sharded / INDEX_FILE).read_text())["weight_map"][TENSOR]
    _rewrite(sharded / file, lambda t: t.pop(TENSOR))
    with pytest.raises(CheckpointError, match=rf"{file}: tensor '{TENSOR}' is missing, though the index"):
        _load(sharded)


@pytest.mark.parametrize("file", ["../evil.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_cannot_point_outside(sharded: Path, file: str) -> None:
    index = json.loads((sharded / INDEX_FILE).read_text())
    edit_json(sharded / INDEX_FILE, weight_map={**index["weight_map"], TENSOR: file})
    with pytest.raises(CheckpointError, match="outside"):
        _load(sharded)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {"a": 1}}', "{}"])
def test_broken_index(sharded: Path, text: str) -> None:
    (sharded / INDEX_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=INDEX_FILE):
        _load(sharded)


def test_nothing_but_safetensors_is_opened(single: Path) -> None:
    (single / SINGLE_FILE).rename(single / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only safetensors are read"):
        _load(single)


def test_a_tied_checkpoint_may_store_the_matrix_twice(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """glm-edge files hold both `embed_tokens` and `lm_head` although tied."""
    directory = Path(shutil.copytree(checkpoint(tie_word_embeddings=True), tmp_path / "tied"))
    _rewrite(directory / SINGLE_FILE, lambda t: t.update({"lm_head.weight": torch.zeros(301, 64)}))
    _load(directory)


def test_a_check_counts_what_is_stored_in_each_dtype(single: Path) -> None:
    config = GlmConfig.from_directory(single)
    wanted = Sharding(config, 0, 1).tensors()
    _rewrite(single / SINGLE_FILE, lambda t: t.update({TENSOR: t[TENSOR].bfloat16()}))
    assert Checkpoint.open(single, config).check(wanted) == {"F32": len(wanted) - 1, "BF16": 1}


def test_progress_ends_at_all_bytes(single: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = load_model(single, ranks=Ranks.single(), on_read=lambda *done_of: seen.append(done_of))
    num_bytes = sum(p.nbytes for p in model.parameters())
    assert seen == sorted(seen)
    assert seen[-1] == (num_bytes, num_bytes)
    assert {total for _, total in seen} == {num_bytes}
