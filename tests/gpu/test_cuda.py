"""The engine's promises on a CUDA device. Skipped where there is none."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.checkpoints import oracle, oracle_greedy
from support.engines import drain, mixed_requests
from support.groups import on_every_rank
from torch.distributed import HashStore

from glm_cluster.config import EngineConfig
from glm_cluster.engine.engine import Engine, open_engine
from glm_cluster.engine.plan import StepOutput, StepPlan
from glm_cluster.engine.runner import ModelRunner
from glm_cluster.model.ranks import Backend, Ranks
from glm_cluster.records import GenerationRequest, SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


def _config(checkpoint: Callable[..., Path], **changes: object) -> EngineConfig:
    return EngineConfig(model=str(checkpoint()), device="cuda", kv_cache_bytes=64 * 2**20, **changes)


def test_greedy_ids_equal_hf(checkpoint: Callable[..., Path]) -> None:
    config = _config(checkpoint)
    sampling = SamplingParams(max_tokens=32, temperature=0, stop_token_ids=(1,))
    prompts = [tuple(range(2, 2 + n)) for n in (1, 5, 64, 100)]
    requests = [GenerationRequest(request_id=f"{i}", prompt=p, sampling=sampling) for i, p in enumerate(prompts)]
    model = oracle(checkpoint())
    ours = drain(open_engine(config), requests)
    assert [ours[f"{i}"] for i in range(4)] == [oracle_greedy(model, p, 32) for p in prompts]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("step_tokens", [512, 7])
def test_ids_do_not_depend_on_the_batch(checkpoint: Callable[..., Path], dtype: str, step_tokens: int) -> None:
    requests = mixed_requests(16, vocab_size=301)
    alone: dict[str, tuple[int, ...]] = {}
    for request in requests:
        alone |= drain(open_engine(_config(checkpoint, dtype=dtype)), [request])
    assert drain(open_engine(_config(checkpoint, dtype=dtype, step_tokens=step_tokens)), requests) == alone


def test_reentry_continues_the_undisturbed_run(checkpoint: Callable[..., Path]) -> None:
    engine = open_engine(_config(checkpoint))
    for request in mixed_requests(4, vocab_size=301):
        whole = drain(engine, [request])[request.request_id]
        for k in range(len(whole)):
            tail = drain(engine, [replace(request, output=whole[:k])])[request.request_id]
            assert whole[:k] + tail == whole


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_a_group_on_one_card_gives_the_ids_of_one_rank(
    checkpoint: Callable[..., Path], backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks share the device: gloo over CUDA tensors, or NCCL where more than one device is there."""
    if backend == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL takes two ranks on one device only in separate processes with their own NCCL_HOSTID")
    config = _config(checkpoint)
    store = HashStore()

    def join(rank: int) -> ModelRunner:
        device = f"cuda:{rank % torch.cuda.device_count()}"
        ranks = Ranks.join(rank=rank, size=2, store=store, device=device, backend=backend)
        return ModelRunner.load(config, ranks)

    runners = on_every_rank(2, join)

    class Group:
        def execute(self, plan: StepPlan) -> StepOutput:
            return on_every_rank(2, lambda rank: runners[rank].execute(plan))[0]

    requests = mixed_requests(8, vocab_size=301)
    group = Engine.assemble(config, runners[0].limits, Group())
    assert drain(group, requests) == drain(open_engine(config), requests)


def test_this_suite_was_not_skipped_by_mistake() -> None:
    """With CUDA_VISIBLE_DEVICES empty torch finds no device and everything above would skip in silence."""
    assert os.environ.get("CUDA_VISIBLE_DEVICES", "all") != ""
