"""The engine's promises on a CUDA device. Skipped where there is none."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import oracle, oracle_greedy
from support.engines import drain, drain_events, encode, encode_requests, mixed_requests
from support.groups import on_every_rank
from torch.distributed import HashStore

from glm_cluster.config import EngineConfig
from glm_cluster.engine.engine import Engine, open_engine
from glm_cluster.engine.plan import StepOutput, StepPlan
from glm_cluster.engine.runner import ModelRunner
from glm_cluster.model.ranks import Ranks, connect_store, open_store
from glm_cluster.records import GenerationRequest, SamplingParams, Task

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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_choices_of_a_prompt_that_come_together_are_those_that_come_alone(
    checkpoint: Callable[..., Path], dtype: str
) -> None:
    """They read keys and values that one of them writes in the same step."""
    engine = open_engine(_config(checkpoint, dtype=dtype))
    one = GenerationRequest(request_id="", prompt=tuple(range(2, 152)), sampling=SamplingParams(max_tokens=20))
    choices = [replace(one, request_id=f"{i}", sampling=replace(one.sampling, seed=i)) for i in range(8)]
    together = drain_events(engine, choices)
    assert [together[c.request_id][0].num_cached_tokens for c in choices] == [0] + [144] * 7
    for choice in choices:
        alone = drain(open_engine(_config(checkpoint, dtype=dtype)), [choice])[choice.request_id]
        assert tuple(t for event in together[choice.request_id] for t in event.tokens) == alone


def test_reentry_continues_the_undisturbed_run(checkpoint: Callable[..., Path]) -> None:
    engine = open_engine(_config(checkpoint))
    for request in mixed_requests(4, vocab_size=301):
        whole = drain(engine, [request])[request.request_id]
        for k in range(len(whole)):
            tail = drain(engine, [replace(request, output=whole[:k])])[request.request_id]
            assert whole[:k] + tail == whole


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", ["classify", "classify-tokens", "embed"])
def test_a_head_s_bits_do_not_depend_on_the_batch(checkpoint: Callable[..., Path], task: Task, dtype: str) -> None:
    model = str(checkpoint(task=task, num_labels=5))
    config = EngineConfig(model=model, task=task, dtype=dtype, device="cuda", kv_cache_bytes=64 * 2**20)
    requests = encode_requests(10, task=task, vocab_size=301)
    alone = {name: one.values for request in requests for name, one in encode(open_engine(config), [request]).items()}
    for step_tokens in (512, 7):
        together = encode(open_engine(replace(config, step_tokens=step_tokens)), requests)
        assert {name: one.values for name, one in together.items()} == alone


def test_gloo_over_cuda_tensors_gives_the_ids_of_one_rank(checkpoint: Callable[..., Path]) -> None:
    config = _config(checkpoint)
    store = HashStore()

    def join(rank: int) -> ModelRunner:
        ranks = Ranks.join(rank=rank, size=2, store=store, device="cuda", backend="gloo")
        return ModelRunner.load(config, ranks)

    runners = on_every_rank(2, join)

    class Group:
        def execute(self, plan: StepPlan) -> StepOutput:
            return on_every_rank(2, lambda rank: runners[rank].execute(plan))[0]

    requests = mixed_requests(8, vocab_size=301)
    group = Engine.assemble(config, runners[0].limits, Group())
    assert drain(group, requests) == drain(open_engine(config), requests)


def test_nccl_gives_the_ids_of_one_rank(checkpoint: Callable[..., Path]) -> None:
    """Two processes on one card: NCCL takes them when each claims a host of its own."""
    config = _config(checkpoint)
    requests = mixed_requests(6, vocab_size=301)
    store = open_store("127.0.0.1")
    context = get_context("spawn")
    answers = context.SimpleQueue()
    ranks = [context.Process(target=_nccl_rank, args=(rank, store.port, config, requests, answers)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(180)
    assert [process.exitcode for process in ranks] == [0, 0]
    assert answers.get() == drain(open_engine(config), requests)


def _nccl_rank(
    rank: int, port: int, config: EngineConfig, requests: list[GenerationRequest], answers: "SimpleQueue[Any]"
) -> None:
    """Both ranks schedule alike, so that no plan has to travel; rank 0's tokens are told to the other by the store."""
    os.environ["NCCL_HOSTID"] = f"host-{rank}"
    torch.cuda.set_device(rank % torch.cuda.device_count())
    store = connect_store("127.0.0.1", port)
    device = f"cuda:{rank % torch.cuda.device_count()}"
    runner = ModelRunner.load(config, Ranks.join(rank=rank, size=2, store=store, device=device, backend="nccl"))
    steps = count()

    class Follow:
        def execute(self, plan: StepPlan) -> StepOutput:
            output, key = runner.execute(plan), f"step-{next(steps)}"
            if rank == 0:
                store.set(key, json.dumps(output.tokens))
            return StepOutput({key: tuple(ids) for key, ids in json.loads(store.get(key)).items()})

    ids = drain(Engine.assemble(config, runner.limits, Follow()), requests)
    if rank == 0:
        answers.put(ids)
