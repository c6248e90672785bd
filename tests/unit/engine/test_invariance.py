"""The same request gives the same tokens and the same log-probabilities, to the bit, whatever happens around it.

Mixes of requests are generated; each must come out as it does alone in an engine of its own. The backends are both
held to it: the native kernels, with and without int8, and torch's operations.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.engines import drain, drain_events

from glm_cluster.config import EngineConfig
from glm_cluster.engine import heads
from glm_cluster.engine.engine import open_engine
from glm_cluster.engine.past import Past
from glm_cluster.engine.sampler import sample
from glm_cluster.model import backend
from glm_cluster.model.kernels.build import Refusal
from glm_cluster.model.kernels.native import library
from glm_cluster.records import GenerationRequest, Grammar, SamplingParams, TokenEvent, TokenLogprobs

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
    drafts: int = 7

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
                "speculative_tokens": self.drafts,
                "kv_cache_bytes": None if self.num_blocks is None else self.num_blocks * block_bytes,
            }
        )


WORDS = st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=2).map(tuple)
EDITS = {  # together they leave something: a grammar's 2 or 3 and the steps between allowed ids have no common divisor
    "min_tokens": st.integers(1, 12),
    "presence_penalty": st.sampled_from([-1.0, 0.3, 2.0]),
    "frequency_penalty": st.sampled_from([-0.5, 0.7]),
    "repetition_penalty": st.sampled_from([0.9, 1.3]),
    "logit_bias": st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-5, 5), max_size=4).map(lambda d: (*d.items(),)),
    "allowed_token_ids": st.sampled_from([1, 5, 7]).map(lambda step: tuple(range(1, VOCAB, step))),
    "bad_words": st.lists(WORDS, max_size=4).map(tuple),
    "grammar": st.sampled_from([Grammar("regex", "2"), Grammar("regex", "3")]),
}


class Residues:
    """A grammar of a made-up kind: no id whose sum with the output's length and last id is a multiple."""

    error = None
    is_ready = True

    def __init__(self, grammar: Grammar) -> None:
        self._step = int(grammar.source)
        self._output: list[int] = []

    def leave(self) -> None:
        """There is nothing to give up."""

    @property
    def num_taken(self) -> int:
        return len(self._output)

    def take(self, tokens: Sequence[int]) -> None:
        self._output += tokens

    def allowed(self) -> NDArray[np.int32]:
        bits = (np.arange(-(-VOCAB // 32) * 32) + len(self._output) + sum(self._output[-1:])) % self._step != 0
        return np.packbits(bits, bitorder="little").view("<i4")

    def forced(self) -> list[int]:
        """Some that may come and some that may not: whoever draws decides."""
        count = sum(self._output[-1:]) % 4
        return [(sum(self._output) + 5 * i) % VOCAB for i in range(count)]


@st.composite
def mixes(draw: st.DrawFn) -> list[GenerationRequest]:
    """Two to six requests; some begin alike or are the same, and some repeat themselves, for guessing ahead."""
    requests: list[GenerationRequest] = []
    for index in range(draw(st.integers(2, 6))):
        length = draw(st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 100, 150]))
        kind = draw(st.sampled_from(["shared", "own", "repetitive", "last"]))
        own = tuple(draw(st.lists(st.integers(2, VOCAB - 1), min_size=4, max_size=4)))
        spread = tuple((7 * token + 31 * i) % (VOCAB - 2) + 2 for i in range(40) for token in own)
        last = requests[-1].prompt if requests else SHARED
        prompt = {"shared": SHARED, "own": spread, "repetitive": own * 40, "last": last}[kind][:length]
        edits = {name: draw(values) for name, values in EDITS.items() if draw(st.sampled_from([True] + [False] * 4))}
        sampling = SamplingParams(
            max_tokens=draw(st.integers(1, 24)),
            temperature=draw(st.sampled_from([0.0, 0.0, 0.8])),
            top_k=draw(st.sampled_from([None, 8])),
            top_p=draw(st.sampled_from([None, 0.9])),
            seed=1000 * index + draw(st.integers(0, 99)),
            stop_token_ids=(1,),
            logprobs=draw(st.sampled_from([None, 0, 3])),
            prompt_logprobs=draw(st.sampled_from([None, None, 0, 2])),
            **edits,
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
        drafts=draw(st.sampled_from([0, 7])),
    )


ALONE = Setting(step_tokens=512, max_running=1, block_tokens=16, threads=1, num_blocks=None, is_warm=False)


@dataclass(frozen=True)
class Outcome:
    """The ids of a request, what was told of each, and the log-probabilities [V] behind each of them by position."""

    ids: tuple[int, ...]
    logprobs: dict[int, torch.Tensor]
    told: tuple[TokenLogprobs, ...]
    told_of_prompt: tuple[TokenLogprobs | None, ...]
    num_cached: int

    @classmethod
    def of(cls, events: Sequence[TokenEvent], logprobs: dict[int, torch.Tensor]) -> Self:
        assert all(not e.prompt_logprobs for e in events[1:])
        return cls(
            ids=tuple(t for e in events for t in e.tokens),
            logprobs=logprobs,
            told=tuple(one for e in events for one in e.logprobs),
            told_of_prompt=events[0].prompt_logprobs,
            num_cached=events[0].num_cached_tokens,
        )


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
        engine = open_engine(setting.config(model, dtype, quantization), constrain=Residues)
        if setting.is_warm:
            drain(engine, list(requests))
            for positions in seen.values():
                positions.clear()
        events = drain_events(engine, requests)
        return {r.request_id: Outcome.of(events[r.request_id], seen[r.sampling.seed]) for r in requests}

    yield outcomes
    torch.set_num_threads(threads)


def assert_same(ours: Outcome, wanted: Outcome, prompt: int, done: int = 0) -> None:
    assert wanted.ids[:done] + ours.ids == wanted.ids
    assert wanted.told[:done] + ours.told == wanted.told
    assert ours.told_of_prompt == (() if done else wanted.told_of_prompt)
    for at in range(prompt + done, prompt + len(wanted.ids)):
        assert torch.equal(ours.logprobs[at], wanted.logprobs[at]), at


def assert_told(outcome: Outcome, request: GenerationRequest) -> None:
    """As many as were asked for, and of the right tokens: a greedy one that nothing was done to is the likeliest."""
    asked = request.sampling
    told_of_prompt = outcome.told_of_prompt
    assert len(outcome.told) == (0 if asked.logprobs is None else len(outcome.ids))
    assert all(len(one.top) == asked.logprobs for one in outcome.told)
    assert len(told_of_prompt) == (0 if asked.prompt_logprobs is None else len(request.prompt))
    assert [one is None for one in told_of_prompt] == [True, *[False] * (len(request.prompt) - 1)][
        : len(told_of_prompt)
    ]
    assert all(len(one.top) == asked.prompt_logprobs for one in told_of_prompt if one is not None)
    for token, one in zip(outcome.ids, outcome.told, strict=False):
        named = dict(one.top)
        assert (token in named) == (one.rank <= len(one.top))
        assert named.get(token, one.logprob) == one.logprob
    if asked.temperature == 0 and not Past(asked, (), 0).edits_logits and asked.grammar is None:
        assert all(one.rank == 1 for one in outcome.told)


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
        assert_told(alone[one.request_id], one)
    together = run(setting, requests)
    done = {name: int(where * len(outcome.ids)) for name, outcome in alone.items()}
    again = run(setting, [replace(r, output=alone[r.request_id].ids[: done[r.request_id]]) for r in requests])
    for one in requests:
        name, prompt = one.request_id, len(one.prompt)
        assert_same(together[name], alone[name], prompt)
        assert_same(again[name], alone[name], prompt, done[name])


@pytest.mark.parametrize("step_tokens", [17, 512], ids=["chunked", "whole"])
@pytest.mark.parametrize("block_tokens", [4, 16, 32])
def test_choices_of_a_prompt_that_come_together_read_what_one_of_them_writes(
    run: Callable[[Setting, Sequence[GenerationRequest]], dict[str, Outcome]], block_tokens: int, step_tokens: int
) -> None:
    """In the same step; with whole prompts, prompts that go their own way in the middle of a block, and strangers."""
    alike = (150, 150, 96, 70, 0, 150, 96, 97)  # tokens that a prompt has in common with the first
    prompts = [SHARED[:n] if n > 90 else SHARED[:n] + SHARED[::-1][n:] for n in alike]
    sampling = SamplingParams(max_tokens=6, temperature=0.8, logprobs=2)
    requests = [
        GenerationRequest(request_id=f"r{i}", prompt=prompt, sampling=replace(sampling, seed=i))
        for i, prompt in enumerate(prompts)
    ]
    setting = replace(ALONE, step_tokens=step_tokens, max_running=64, block_tokens=block_tokens, threads=2)
    together = run(setting, requests)
    for one in requests:
        assert_same(together[one.request_id], run(ALONE, [one])[one.request_id], len(one.prompt))
    shared = [min(n, len(p) - 1) // block_tokens * block_tokens for n, p in zip(alike, prompts, strict=True)]
    assert [together[one.request_id].num_cached for one in requests] == [0, *shared[1:]]


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
