"""The engine on real tiny models: HF's ids, the same ids whatever the batch, exact re-entry, blocks all back."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.checkpoints import oracle, oracle_greedy
from support.engines import drain, drain_events, mixed_requests

from glm_cluster.config import EngineConfig
from glm_cluster.engine import heads
from glm_cluster.engine.engine import open_engine
from glm_cluster.engine.sampler import sample
from glm_cluster.records import GenerationRequest, SamplingParams

DTYPES = ["float32", "bfloat16"]
TIGHT_BLOCKS = 14


def _tight(dtype: str) -> dict[str, int]:
    """A pool of 14 blocks of 16 tokens, 3 layers, 2 KV heads of 32."""
    return {
        "step_tokens": 32,
        "max_model_len": 16 * TIGHT_BLOCKS,
        "kv_cache_bytes": TIGHT_BLOCKS * 2 * 3 * 2 * 32 * 16 * (4 if dtype == "float32" else 2),
    }


@pytest.fixture(scope="module")
def alone(checkpoint: Callable[..., Path]) -> Callable[[str], dict[str, tuple[int, ...]]]:
    """The ids each request of the mix gets in an engine of its own."""
    made: dict[str, dict[str, tuple[int, ...]]] = {}

    def run(dtype: str) -> dict[str, tuple[int, ...]]:
        if dtype not in made:
            config = EngineConfig(model=str(checkpoint()), dtype=dtype)
            made[dtype] = {}
            for request in mixed_requests(24, vocab_size=301):
                made[dtype] |= drain(open_engine(config), [request])
        return made[dtype]

    return run


def test_greedy_ids_equal_hf(checkpoint: Callable[..., Path]) -> None:
    directory = checkpoint()
    rng = random.Random(3)
    prompts = [tuple(rng.randrange(2, 301) for _ in range(n)) for n in (1, 5, 64, 100)]
    sampling = SamplingParams(max_tokens=32, temperature=0, stop_token_ids=(1,))
    requests = [GenerationRequest(request_id=f"{i}", prompt=p, sampling=sampling) for i, p in enumerate(prompts)]
    ours = drain(open_engine(EngineConfig(model=str(directory))), requests)
    model = oracle(directory)
    assert [ours[f"{i}"] for i in range(4)] == [oracle_greedy(model, p, 32) for p in prompts]


def test_logprobs_of_prompt_and_output_are_hf_s(checkpoint: Callable[..., Path]) -> None:
    """Over two chunks of rows: one row of logits in the prompt is not held beside all the others."""
    rng = random.Random(4)
    prompt = tuple(rng.randrange(2, 301) for _ in range(100))
    sampling = SamplingParams(max_tokens=5, temperature=0, presence_penalty=1.0, logprobs=3, prompt_logprobs=2)
    request = GenerationRequest(request_id="r", prompt=prompt, sampling=sampling)
    events = drain_events(open_engine(EngineConfig(model=str(checkpoint()))), [request])["r"]
    tokens = (*prompt, *(token for event in events for token in event.tokens))
    with torch.inference_mode():
        wanted = oracle(checkpoint())(torch.tensor([tokens])).logits[0].log_softmax(-1)
    told = [*events[0].prompt_logprobs[1:], *(one for event in events for one in event.logprobs)]
    assert len(told) == len(tokens) - 1
    for row, token, one in zip(wanted, tokens[1:], told, strict=False):
        assert one.logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert one.rank == pytest.approx((row > row[token]).sum().item() + 1, abs=1)
        assert [p for _, p in one.top] == pytest.approx(row.topk(len(one.top)).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ["wide", "chunked", "tight", "narrow"])
def test_ids_do_not_depend_on_the_batch(
    checkpoint: Callable[..., Path], alone: Callable[[str], dict[str, tuple[int, ...]]], dtype: str, shape: str
) -> None:
    """Batched with strangers, chunked, preempted, few at a time; then again from a warm prefix cache."""
    changes = {"wide": {}, "chunked": {"step_tokens": 7}, "tight": _tight(dtype), "narrow": {"max_running": 3}}[shape]
    engine = open_engine(EngineConfig(model=str(checkpoint()), dtype=dtype, **changes))
    requests = mixed_requests(24, vocab_size=301)
    cold = drain(engine, requests)
    warm = drain_events(engine, requests)
    assert cold == alone(dtype)
    assert {n: tuple(t for e in some for t in e.tokens) for n, some in warm.items()} == alone(dtype)
    if shape == "wide":
        assert sum(some[-1].num_cached_tokens for some in warm.values()) > 500
    assert engine.load().num_free_blocks == engine.load().num_blocks


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_do_not_depend_on_the_batch(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Bit for bit, where ids might hide a difference; widths like the demo model's, where GEMMs take other paths."""
    wide = checkpoint(
        hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, head_dim=64
    )
    requests = mixed_requests(9, vocab_size=301, max_tokens=6)

    def logits(groups: list[list[GenerationRequest]], step_tokens: int) -> dict[tuple[str, int], torch.Tensor]:
        """Every row that was sampled, by sequence and position."""
        seen: dict[tuple[str, int], torch.Tensor] = {}

        def spy(rows: torch.Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
            tokens = sample(rows, params, positions)
            seen.update({(str(p.seed), at): row.clone() for p, at, row in zip(params, positions, rows, strict=True)})
            return tokens

        monkeypatch.setattr(heads, "sample", spy)
        for group in groups:
            drain(open_engine(EngineConfig(model=str(wide), dtype=dtype, step_tokens=step_tokens)), group)
        return seen

    alone = logits([[r] for r in requests], 512)
    for together in (logits([requests], 512), logits([requests], 7), logits([requests[:3], requests[3:]], 50)):
        assert together.keys() == alone.keys()
        assert [key for key in alone if not torch.equal(alone[key], together[key])] == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_reentry_continues_the_undisturbed_run(
    checkpoint: Callable[..., Path], alone: Callable[[str], dict[str, tuple[int, ...]]], dtype: str
) -> None:
    engine = open_engine(EngineConfig(model=str(checkpoint()), dtype=dtype))
    for request in mixed_requests(8, vocab_size=301):
        whole = alone(dtype)[request.request_id]
        parts = [replace(request, request_id=f"{k}", output=whole[:k]) for k in range(len(whole) + 1)]
        tails = drain(engine, parts)
        assert [whole[:k] + tails[f"{k}"] for k in range(len(whole) + 1)] == [whole] * (len(whole) + 1)


def test_two_hundred_cancelled_midway_return_every_block(checkpoint: Callable[..., Path]) -> None:
    engine = open_engine(EngineConfig(model=str(checkpoint()), max_running=32))
    rng = random.Random(9)
    sampling = SamplingParams(max_tokens=50, temperature=1.0)
    for i in range(200):
        prompt = tuple(rng.randrange(2, 301) for _ in range(rng.randrange(1, 40)))
        engine.add(GenerationRequest(request_id=f"{i}", prompt=prompt, sampling=sampling))
    order = list(range(200))
    rng.shuffle(order)
    for victim in order:
        engine.step()
        engine.cancel(f"{victim}", 0)
        engine.check()
    engine.step()
    assert not engine.has_work
    assert engine.load().num_free_blocks == engine.load().num_blocks


def test_two_engines_in_one_process_do_not_notice_each_other(checkpoint: Callable[..., Path]) -> None:
    requests = mixed_requests(6, vocab_size=301)
    first, second = (open_engine(EngineConfig(model=str(checkpoint(seed=s)))) for s in (1, 2))
    wanted = [drain(open_engine(EngineConfig(model=str(checkpoint(seed=s)))), requests) for s in (1, 2)]
    for request in requests:
        first.add(request)
        second.add(request)
    seen: list[dict[str, tuple[int, ...]]] = [{}, {}]
    while first.has_work or second.has_work:
        for engine, out in zip((first, second), seen, strict=True):
            for event in engine.step():
                out[event.request_id] = out.get(event.request_id, ()) + event.tokens
    assert seen == wanted
