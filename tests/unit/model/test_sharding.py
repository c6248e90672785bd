"""Shards on literal matrices with a made-up rank: no process, no weights."""

import itertools
from typing import get_args

import pytest
import torch

from glm_cluster.errors import ConfigError
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.loading import MODEL_OF
from glm_cluster.model.ranks import Ranks
from glm_cluster.model.sharding import Shard, Sharding
from glm_cluster.records import Task

SMALL = GlmConfig(
    vocab_size=10,
    hidden_size=4,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=2,
    partial_rotary_factor=1.0,
    pad_token_id=None,
)
LAYER = "model.layers.0."


def _rows(shard: Shard) -> list[int]:
    return list(itertools.chain.from_iterable(range(*r) for r in shard.ranges))


def test_gate_and_up_are_split_separately() -> None:
    shard = Sharding(SMALL, 1, 4).tensors()[LAYER + "mlp.gate_up_proj.weight"]
    assert _rows(shard) == [2, 3, 10, 11]
    assert shard.shape == (4, 4)


def test_kv_heads_are_replicated_when_ranks_outnumber_them() -> None:
    k = [_rows(Sharding(SMALL, rank, 4).tensors()[LAYER + "self_attn.k_proj.weight"]) for rank in range(4)]
    assert k == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_vocabulary_is_padded_to_equal_shares() -> None:
    shards = [Sharding(SMALL, rank, 4).tensors()["lm_head.weight"] for rank in range(4)]
    assert [_rows(s) for s in shards] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert {s.shape for s in shards} == {(3, 4)}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_shards_cover_each_tensor_once(size: int) -> None:
    """Every row or column is held by exactly one rank; KV rows by size / kv_heads of them, norms by all."""
    for name in Sharding(SMALL, 0, size).tensors():
        shards = [Sharding(SMALL, rank, size).tensors()[name] for rank in range(size)]
        held = sorted(itertools.chain.from_iterable(map(_rows, shards)))
        length = shards[0].full[shards[0].dim]
        copies = size if "norm" in name else max(1, size // 2) if ("k_proj" in name or "v_proj" in name) else 1
        assert held == sorted(list(range(length)) * copies), name


def test_an_impossible_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="legal sizes are 1, 2, 4"):
        Sharding(SMALL, 0, 3)


@pytest.mark.parametrize("task", get_args(Task))
def test_a_tasks_tensors_are_those_of_its_model(task: Task) -> None:
    """What is looked for before anything starts is what is loaded."""
    with torch.device("meta"):
        model = MODEL_OF[task](SMALL, Ranks.single())
    wanted = Sharding(SMALL, 0, 1).of_task(task)
    assert model.shards() == wanted
    assert {name.removeprefix("model.") for name in wanted} == {n.removeprefix("model.") for n in model.state_dict()}
