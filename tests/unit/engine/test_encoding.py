"""The engine on tiny models with a head: HF's numbers, and the same bits whatever else is in the batch."""

import itertools
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import oracle
from support.engines import drain, encode, encode_requests

from glm_cluster.config import EngineConfig
from glm_cluster.engine.engine import open_engine
from glm_cluster.errors import InvalidRequest
from glm_cluster.records import Encoded, EncodeRequest, GenerationRequest, SamplingParams, Task

TASKS: list[Task] = ["classify", "classify-tokens", "embed"]
SHAPE: dict[str, Any] = {"num_labels": 5}
TIGHT_BLOCKS = 11
Open = Callable[..., EngineConfig]


@pytest.fixture(scope="module")
def config(checkpoint: Callable[..., Path]) -> Open:
    def make(task: Task, **changes: Any) -> EngineConfig:
        return EngineConfig(model=str(checkpoint(task=task, **SHAPE)), task=task, **{"dtype": "float32", **changes})

    return make


def _tight(dtype: str) -> dict[str, int]:
    """A pool of 11 blocks of 16 tokens, 3 layers, 2 KV heads of 32: one long prompt, or a few short ones."""
    slot = 2 * 3 * 2 * 32 * (4 if dtype == "float32" else 2)
    return {"step_tokens": 48, "max_model_len": 16 * TIGHT_BLOCKS, "kv_cache_bytes": TIGHT_BLOCKS * 16 * slot}


def _rows(encoded: Encoded) -> torch.Tensor:
    values = struct.unpack(f"<{encoded.num_rows * encoded.width}f", encoded.values)
    return torch.tensor(values).view(encoded.num_rows, encoded.width)


def _bits(results: dict[str, Encoded]) -> dict[str, Encoded]:
    """The results without what they say of the cache."""
    return {name: replace(encoded, num_cached_tokens=0) for name, encoded in results.items()}


@pytest.mark.parametrize("task", TASKS)
def test_rows_equal_hf(config: Open, task: Task) -> None:
    settings = config(task)
    model = oracle(Path(settings.model), task=task)
    requests = encode_requests(8, task=task, vocab_size=301)
    ours = encode(open_engine(settings), requests)
    for request in requests:
        with torch.no_grad():
            out = model(torch.tensor([request.prompt]))
        wanted = out.last_hidden_state[0] if task == "embed" else out.logits[-1:].reshape(-1, 5)
        if request.pooling == "mean":
            wanted = wanted.mean(0, keepdim=True)
        elif request.pooling == "last":
            wanted = wanted[-1:]
        torch.testing.assert_close(_rows(ours[request.request_id]), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", TASKS)
def test_bits_do_not_depend_on_the_batch(config: Open, task: Task, dtype: str) -> None:
    """Alone, with strangers, in chunks, few at a time, reordered, from a warm prefix cache."""
    requests = encode_requests(12, task=task, vocab_size=301)
    alone: dict[str, Encoded] = {}
    for request in requests:
        alone |= encode(open_engine(config(task, dtype=dtype)), [request])
    assert len({encoded.values for encoded in alone.values()}) == 12
    shuffled = random.Random(7).sample(requests, 12)
    for changes in ({}, {"step_tokens": 7}, _tight(dtype), {"max_running": 3}):
        engine = open_engine(config(task, dtype=dtype, **changes))
        assert _bits(encode(engine, requests)) == alone, changes
        warm = encode(engine, shuffled)
        assert _bits(warm) == alone, changes
        assert engine.load().num_free_blocks == engine.load().num_blocks
        for request in requests:
            assert request.pooling == "last" or warm[request.request_id].num_cached_tokens == 0
        assert task == "classify-tokens" or changes or any(e.num_cached_tokens for e in warm.values())


@pytest.mark.parametrize("task", TASKS)
def test_bits_survive_preemption(config: Open, task: Task) -> None:
    """The youngest is sent back now and then; prompts alone never bring that about, their oldest takes all."""
    requests = encode_requests(6, task=task, vocab_size=301)
    undisturbed = encode(open_engine(config(task)), requests)
    engine = open_engine(config(task, step_tokens=40))
    for request in requests:
        engine.add(request)
    results: dict[str, Encoded] = {}
    num_preempted = 0
    for step in itertools.count():
        if not engine.has_work:
            break
        results |= {event.request_id: event.encoded for event in engine.step() if event.encoded is not None}
        if step in (1, 3, 6) and (running := engine._scheduler._running):
            num_preempted += 1
            engine._scheduler._preempt(next(reversed(running.values())))
        engine.check()
    assert num_preempted
    assert _bits(results) == _bits(undisturbed)


def test_each_engine_takes_the_requests_of_its_task(config: Open, checkpoint: Callable[..., Path]) -> None:
    to_encode = EncodeRequest(request_id="e", prompt=(5,), pooling="last")
    to_continue = GenerationRequest(request_id="g", prompt=(5,), sampling=SamplingParams(max_tokens=1))
    with pytest.raises(InvalidRequest, match="served for generate"):
        open_engine(EngineConfig(model=str(checkpoint()))).add(to_encode)
    with pytest.raises(InvalidRequest, match="served for embed"):
        open_engine(config("embed")).add(to_continue)


def test_unused_ids_are_never_sampled(checkpoint: Callable[..., Path]) -> None:
    """Neither greedily nor by chance; what is left keeps its order."""
    settings = EngineConfig(model=str(checkpoint()), dtype="float32")
    requests = [
        GenerationRequest(
            request_id=f"r{i}",
            prompt=(i + 2,),
            sampling=SamplingParams(max_tokens=1, temperature=float(i % 2), seed=i),
        )
        for i in range(64)
    ]
    free = drain(open_engine(settings), requests)
    masked = drain(open_engine(settings, unused_token_ids=((0, 40), (100, 290))), requests)
    allowed = {*range(40, 100), *range(290, 301)}
    assert {ids[0] for ids in masked.values()} <= allowed
    assert not {ids[0] for ids in free.values()} <= allowed
    assert all(masked[r] == free[r] for r in list(free)[::2] if free[r][0] in allowed)
