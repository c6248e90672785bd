"""The same request gives the same tokens and the same log-probabilities, to the bit, whatever happens around it.

Mixes of requests are generated; each must come out as it does alone in an engine of its own. The backends are both
held to it: the native kernels, with and without int8, and torch's operations.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.engines import drain

from glm_cluster.config import EngineConfig
from glm_cluster.engine import heads
from glm_cluster.engine.engine import open_engine
from glm_cluster.engine.sampler import sample
from glm_cluster.model import backend
from glm_cluster.model.kernels.build import Refusal
from glm_cluster.model.kernels.native import library
from glm_cluster.records import GenerationRequest, SamplingParams

VOCAB, LAYERS, KV_HEADS, HEAD_DIM = 301, 3, 2, 32
WAYS = [("native", "bfloat16", "none"), ("native", "float32", "none"), ("native", "bfloat16", "int8")]
WAYS += [("torch", "bfloat16", "none"), ("torch", "float32", "none")]
SHARED = tuple(7 + 3 * i % 290 for i in range(150))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What surrounds the requests."""

    step_tokens: int
    max_running: int
    block_tokens: int
    threads: int
    num_blocks: int | None  # a pool so small that requests are preempted
    is_warm: bool  # whether all of them have run here before

    def config(self, model: Path, dtype: str, quantization: str) -> EngineConfig:
        block_bytes = 2 * LAYERS * KV_HEADS * HEAD_DIM * self.block_tokens * (4 if dtype == "float32" else 2)
        return EngineConfig.from_mapping(
            {
                "model": str(model),
                "dtype": dtype,
                "quantization": quantization,
                "step_tokens": self.step_tokens,
                "max_running": self.max_running,
                "block_tokens": self.block_tokens,
                "max_model_len": 224,
                "kv_cache_bytes": None if self.num_blocks is None else self.num_blocks * block_bytes,
            }
        )


@st.composite
def mixes(draw: st.DrawFn) -> list[GenerationRequest]:
    """Two to six requests; some begin alike, and some with a repetition, so that guessing ahead has something."""
    requests = []
    for index in range(draw(st.integers(2, 6))):
        length = draw(st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 100, 150]))
        kind = draw(st.sampled_from(["shared", "own", "repetitive"]))
        own = tuple(draw(st.lists(st.integers(2, VOCAB - 1), min_size=4, max_size=4)))
        spread = tuple((7 * token + 31 * i) % (VOCAB - 2) + 2 for i in range(40) for token in own)
        prompt = {"shared": SHARED, "own": spread, "repetitive": own * 40}[kind][:length]
        sampling = SamplingParams(
            max_tokens=draw(st.integers(1, 24)),
            temperature=draw(st.sampled_from([0.0, 0.0, 0.8])),
            top_k=draw(st.sampled_from([None, 8])),
            top_p=draw(st.sampled_from([None, 0.9])),
            seed=1000 * index + draw(st.integers(0, 99)),
            stop_token_ids=(1,),
        )
        requests.append(GenerationRequest(request_id=f"r{index}", prompt=prompt, sampling=sampling))
    return requests


@st.composite
def surroundings(draw: st.DrawFn) -> Setting:
    """Chunks from one token up, few or many at once, pools from just enough for one, one thread to three."""
    block_tokens = draw(st.sampled_from([4, 16, 32]))
    least = -(-224 // block_tokens)
    return Setting(
        step_tokens=draw(st.sampled_from([1, 3, 8, 17, 50, 512])),
        max_running=draw(st.sampled_from([1, 2, 64])),
        block_tokens=block_tokens,
        threads=draw(st.integers(1, 3)),
        num_blocks=draw(st.sampled_from([None, least, least + 3])),
        is_warm=draw(st.booleans()),
    )


ALONE = Setting(step_tokens=512, max_running=1, block_tokens=16, threads=1, num_blocks=None, is_warm=False)


@dataclass(frozen=True)
class Outcome:
    """The ids of a request, and the log-probabilities [V] behind each of them by position."""

    ids: tuple[int, ...]
    logprobs: dict[int, torch.Tensor]


@pytest.fixture(params=WAYS, ids="-".join)
def run(
    request: pytest.FixtureRequest, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Setting, Sequence[GenerationRequest]], dict[str, Outcome]]]:
    """Runs requests in a new engine of one backend; tells what came of each."""
    name, dtype, quantization = request.param
    if name == "torch":
        monkeypatch.setattr(backend, "library", lambda: Refusal(reason="switched off by the test"))
    elif isinstance(refusal := library(), Refusal):
        pytest.skip(refusal.reason)
    model = checkpoint()
    threads = torch.get_num_threads()

    def outcomes(setting: Setting, requests: Sequence[GenerationRequest]) -> dict[str, Outcome]:
        seen: dict[int, dict[int, torch.Tensor]] = {r.sampling.seed: {} for r in requests}

        def spy(rows: torch.Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
            for row, p, at in zip(rows.float().log_softmax(-1), params, positions, strict=True):
                seen[p.seed][at] = row
            return sample(rows, params, positions)

        monkeypatch.setattr(heads, "sample", spy)
        torch.set_num_threads(setting.threads)
        engine = open_engine(setting.config(model, dtype, quantization))
        if setting.is_warm:
            drain(engine, list(requests))
            for positions in seen.values():
                positions.clear()
        ids = drain(engine, list(requests))
        return {r.request_id: Outcome(ids[r.request_id], seen[r.sampling.seed]) for r in requests}

    yield outcomes
    torch.set_num_threads(threads)


def assert_same(ours: Outcome, wanted: Outcome, prompt: int, done: int = 0) -> None:
    assert wanted.ids[:done] + ours.ids == wanted.ids
    for at in range(prompt + done, prompt + len(wanted.ids)):
        assert torch.equal(ours.logprobs[at], wanted.logprobs[at]), at


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(requests=mixes(), setting=surroundings(), where=st.floats(0, 1))
def test_a_request_comes_out_as_it_does_alone(
    run: Callable[[Setting, Sequence[GenerationRequest]], dict[str, Outcome]],
    requests: list[GenerationRequest],
    setting: Setting,
    where: float,
) -> None:
    """Also when each goes on from a place in its own output, as it does after its engine was lost."""
    alone: dict[str, Outcome] = {}
    for one in requests:
        alone |= run(ALONE, [one])
    together = run(setting, requests)
    done = {name: int(where * len(outcome.ids)) for name, outcome in alone.items()}
    again = run(setting, [replace(r, output=alone[r.request_id].ids[: done[r.request_id]]) for r in requests])
    for one in requests:
        name, prompt = one.request_id, len(one.prompt)
        assert_same(together[name], alone[name], prompt)
        assert_same(again[name], alone[name], prompt, done[name])


def test_int8_reaches_the_engine_and_stays_near(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that nobody read would give the same numbers."""
    if isinstance(refusal := library(), Refusal):
        pytest.skip(refusal.reason)
    rows: list[torch.Tensor] = []

    def spy(logits: torch.Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
        rows.append(logits[0].float())
        return sample(logits, params, positions)

    monkeypatch.setattr(heads, "sample", spy)
    request = GenerationRequest(request_id="r", prompt=SHARED, sampling=SamplingParams(max_tokens=1, temperature=0.0))
    for quantization in ("none", "int8"):
        drain(open_engine(ALONE.config(checkpoint(), "bfloat16", quantization)), [request])
    plain, bytes_ = rows
    assert not torch.equal(plain, bytes_)
    assert torch.nn.functional.cosine_similarity(plain, bytes_, dim=0) > 0.9
