"""Filling a model: what is told of it while it happens, and what it takes."""

import json
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.memory import __file__ as memory_file
from torch import nn

from glm_cluster.model import GlmConfig, GlmForCausalLM
from glm_cluster.model.checkpoints.weights import fill
from glm_cluster.model.loading import load_model
from glm_cluster.model.ranks import Ranks

TINY = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "pad_token_id": 0,
}


def saved(directory: Path, *, max_shard_size: str = "50GB", **changes: object) -> Path:
    torch.manual_seed(0)
    GlmForCausalLM(GlmConfig(**{**TINY, **changes})).save_pretrained(directory, max_shard_size=max_shard_size)
    return directory


@pytest.mark.parametrize("max_shard_size", ["50GB", "100KB"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_module_is_told_once_and_whole(tmp_path: Path, tied: bool, max_shard_size: str) -> None:
    told: list[nn.Module] = []

    def on_module(module: nn.Module) -> None:
        assert not any(parameter.is_meta or parameter.requires_grad for parameter in module.parameters())
        assert all(child in told for child in module.children() if [*child.parameters()]), "innermost first"
        told.append(module)

    directory = saved(tmp_path, tie_word_embeddings=tied, max_shard_size=max_shard_size)
    model = load_model(directory, ranks=Ranks.single(), on_module=on_module)
    assert told[-1] is model
    assert len(told) == len(set(told))
    assert set(told) == {module for module in model.modules() if [*module.parameters()]}
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_a_packed_matrix_is_freed_before_the_next_is_read(tmp_path: Path) -> None:
    """Raw and packed form of a whole model would be two copies of the weights."""
    alive: list[weakref.ref[torch.Tensor]] = []

    def tensors(model: GlmForCausalLM) -> Iterator[tuple[str, torch.Tensor]]:
        for name, shard in model.shards().items():
            assert not [ref for ref in alive if ref() is not None]
            made = [torch.full(shard.shape, 7.0)]
            alive.append(weakref.ref(made[0]))
            yield name, made.pop()

    def pack(module: nn.Module) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            alive.append(weakref.ref(parameter))
            setattr(module, name, nn.Parameter(parameter + 1, requires_grad=False))

    with torch.device("meta"):
        model = GlmForCausalLM(GlmConfig(**TINY, tie_word_embeddings=False))
    fill(model, tensors(model), pack)
    assert len(alive) == 2 * len(model.shards())
    assert all(bool((parameter == 8).all()) for parameter in model.parameters())


_MEASURE = """
import json, sys
import torch
from collections.abc import Iterator
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from support.memory import peak_bytes
from glm_cluster.model.checkpoints.weights import fill
from glm_cluster.model.loading import load_model
from glm_cluster.model.ranks import Ranks
ranks = Ranks(0, int(sys.argv[3]), torch.device("cpu"), None)  # loading needs no neighbour
torch.ones(300, 300).bfloat16() @ torch.ones(300, 300).bfloat16()
before = peak_bytes()
model = load_model(Path(sys.argv[1]), ranks=ranks, dtype="bfloat16")
weights = {p.data_ptr(): p.nbytes for p in model.parameters()}
print(json.dumps([peak_bytes() - before, sum(weights.values())]))
"""


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
def test_no_second_copy_of_the_weights(tmp_path: Path, stored: str, size: int) -> None:
    """They are 0.2 GB in the file or more; beside them there is room for one piece of it, whatever is cast or cut."""
    shape = {"hidden_size": 1024, "intermediate_size": 8192, "vocab_size": 10_000, "num_hidden_layers": 2}
    config = GlmConfig(**{**TINY, **shape, "tie_word_embeddings": True})
    hollow_checkpoint(tmp_path, config, stored)
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path), str(Path(memory_file).parents[1]), str(size)],
        capture_output=True,
        text=True,
        check=True,
    )
    peak, weights = json.loads(run.stdout)
    assert weights > 60e6
    assert peak >= 0.95 * weights, "what was measured is not the loading"
    assert peak <= 1.15 * weights + 12e6


def hollow_checkpoint(directory: Path, config: GlmConfig, dtype: str) -> None:
    """Zeros, as a file with a hole in it."""
    with torch.device("meta"):
        shards = GlmForCausalLM(config).shards()
    code, width = {"bfloat16": ("BF16", 2), "float32": ("F32", 4)}[dtype]
    header, at = {}, 0
    for name, shard in shards.items():
        end = at + width * torch.Size(shard.full).numel()
        header[name] = {"dtype": code, "shape": shard.full, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    config.replace(dtype=dtype).save_pretrained(directory)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + at)
    with safe_open(directory / "model.safetensors", framework="pt") as whole:
        assert set(whole.keys()) == set(shards)
