"""The KV cache takes what is free, bounded by what is useful, and maps pages only when used."""

from pathlib import Path

import pytest
import torch

from glm_cluster.config import EngineConfig
from glm_cluster.engine import memory
from glm_cluster.errors import ConfigError
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.sharding import Sharding

CPU = torch.device("cpu")
MODEL = GlmConfig()


def _plan(**changes: object) -> int:
    config = EngineConfig(model="m", **{"max_model_len": 1000, **changes})
    shard = Sharding(MODEL, 0, 2)
    return memory.plan_blocks(config, model=MODEL, shard=shard, dtype=torch.bfloat16, device=CPU, host_ranks=2)


def test_glm_4_9b_takes_40_kib_a_token() -> None:
    config = EngineConfig(model="m")
    assert memory.block_bytes(config, MODEL, Sharding(MODEL, 0, 1), torch.bfloat16) == 16 * 40 * 1024


def test_free_memory_bounds_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 8 * 2**30)
    assert _plan() == 2**30 // (16 * 20 * 1024) + 1


def test_what_is_useful_bounds_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**50)
    assert _plan(max_running=2, max_model_len=100) == 2 * 2 * 7 + 1


def test_a_given_size_is_taken_and_too_small_a_one_refused() -> None:
    block = 16 * 20 * 1024
    assert _plan(kv_cache_bytes=70 * block) == 71
    with pytest.raises(ConfigError, match=r"one sequence of 1000 tokens takes 19 MiB on each rank, and 18 MiB"):
        _plan(kv_cache_bytes=60 * block)


def test_a_step_of_glm_4_9b_fits_beside_the_cache() -> None:
    """The reserve on a card: about 1 GiB, most of it for sampling 64 rows of 151,552."""
    assert 2**29 < memory.activation_bytes(EngineConfig(model="m"), MODEL) < 2**31


def test_a_model_without_a_vocabulary_to_sample_from_leaves_more_to_the_cache() -> None:
    tokens, rows = (memory.activation_bytes(EngineConfig(model="m", task=t), MODEL) for t in ("generate", "embed"))
    assert 2**28 < tokens - rows < 2**29


def test_host_pages_are_mapped_lazily() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    cache = memory.allocate(
        model=MODEL, shard=Sharding(MODEL, 0, 1), num_blocks=200, block_tokens=16, dtype=torch.float32, device=CPU
    )
    assert resident() - before < 2**20 * 16
    assert cache.keys[-1].sum() == 0
    assert cache.block_tokens == 16
