"""The KV cache takes what is free, bounded by what is useful, and maps pages only when used."""

import json
import re
from pathlib import Path

import pytest
import torch

from glm_cluster.config import EngineConfig
from glm_cluster.engine import memory
from glm_cluster.engine.scheduler import DRAFT_ROWS
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
    assert 2**29 < memory.activation_bytes(EngineConfig(model="m"), MODEL, Sharding(MODEL, 0, 1)) < 2**31


GIB = 2**30


def _published(shared_data: Path, name: str) -> GlmConfig:
    raw = json.loads((shared_data / "configs" / "checkpoints.json").read_text(encoding="utf-8"))[name]["config"]
    return GlmConfig.from_mapping(raw)


def _plan_published(model: GlmConfig, tp: int, **settings: int) -> int:
    return memory.plan_blocks(
        EngineConfig(model="m", tp=tp, **settings),
        model=model,
        shard=Sharding(model, 0, tp),
        dtype=torch.bfloat16,
        device=CPU,
        host_ranks=1,
    )


@pytest.mark.parametrize(
    ("name", "tp", "context", "mib"),
    [
        ("glm-4-9b-chat", 1, 131072, 5120),  # 40 KiB a token
        ("glm-4-9b-chat-hf", 2, 131072, 2560),
        ("glm-4-9b-chat", 8, 131072, 2560),  # its 2 KV heads are held by 4 ranks each
        ("glm-4-9b-chat-1m", 1, 1048576, 81920),  # 4 KV heads: 80 KiB a token
        ("glm-4-9b-chat-1m", 4, 1048576, 20480),
    ],
)
def test_a_context_that_does_not_fit_names_what_it_takes(
    shared_data: Path, name: str, tp: int, context: int, mib: int
) -> None:
    model = _published(shared_data, name)
    sentence = rf"one sequence of {context} tokens takes {mib} MiB on each rank, and {mib - 1} MiB are .*\((\d+) tokens"
    with pytest.raises(ConfigError, match=sentence) as refused:
        _plan_published(model, tp, kv_cache_bytes=(mib << 20) - 1)
    fitting = int(re.search(sentence, refused.value.message)[1])
    assert context - 16 <= fitting < context
    assert _plan_published(model, tp, kv_cache_bytes=(mib << 20) - 1, max_model_len=fitting) == fitting // 16 + 1
    assert _plan_published(model, tp, kv_cache_bytes=mib << 20) == context // 16 + 1


def test_what_a_small_machine_has_serves_a_shorter_context(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 GiB available, of which the cache may take 4: not 128K, but 96K."""
    monkeypatch.setattr(memory, "free_bytes", lambda device: 16 * GIB)
    model = _published(shared_data, "glm-4-9b-chat")
    with pytest.raises(
        ConfigError, match=r"5120 MiB .* 4096 MiB are there for it; lower max_model_len \(104848 tokens"
    ):
        _plan_published(model, 1)
    assert _plan_published(model, 1, max_model_len=98304) > 98304 // 16


@pytest.mark.parametrize(("asked", "planned"), [(None, 131072), (131072, 131072), (5, 5)])
def test_all_of_the_checkpoints_positions_unless_told(asked: int | None, planned: int) -> None:
    assert memory.max_model_len(EngineConfig(model="m", max_model_len=asked), MODEL) == planned


def test_more_than_the_checkpoints_positions_is_refused() -> None:
    """It was lowered without a word."""
    with pytest.raises(ConfigError, match=r"max_model_len 131073 is more than the 131072 tokens"):
        _plan(max_model_len=131073)


def test_yarn_stretches_the_context_that_is_planned_for() -> None:
    """GLM-4-0414 as its card says to serve it: 32K positions, YaRN by 4."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    plain, stretched = (
        GlmConfig(model_type="glm4", max_position_embeddings=32768, rope_scaling=scaling) for scaling in (None, yarn)
    )
    assert [c.context_limit for c in (plain, stretched)] == [32768, 131072]
    with pytest.raises(ConfigError, match=r"sequence of 131072 tokens takes 5120 MiB"):
        _plan_published(stretched, 1, kv_cache_bytes=5120 * 2**20 - 1)


def test_a_step_over_a_million_tokens_unpacks_them_on_the_card(shared_data: Path) -> None:
    """Attention gathers a sequence's keys and values in fp32: 4 GiB that the cache may not take."""
    model = _published(shared_data, "glm-4-9b-chat-1m")
    bound = [memory.activation_bytes(EngineConfig(model="m"), model, Sharding(model, 0, tp)) for tp in (1, 4)]
    assert bound[0] - bound[1] > 3 * GIB
    assert 4 * GIB < bound[0] < 6 * GIB


def test_a_model_without_a_vocabulary_to_sample_from_leaves_more_to_the_cache() -> None:
    shard = Sharding(MODEL, 0, 1)
    engines = [EngineConfig(model="m", task=task) for task in ("generate", "embed")]
    tokens, rows = (memory.activation_bytes(engine, MODEL, shard) for engine in engines)
    assert 2**28 < tokens - rows < 2**29


def test_rows_that_are_sampled_for_drafts_are_counted() -> None:
    engines = [EngineConfig(model="m", max_running=1, speculative_tokens=n) for n in (0, 4)]
    plain, drafting = (memory.activation_bytes(engine, MODEL, Sharding(MODEL, 0, 1)) for engine in engines)
    assert drafting - plain == (DRAFT_ROWS - 1) * MODEL.vocab_size * 48


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
