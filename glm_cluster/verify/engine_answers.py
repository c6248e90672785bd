"""What the engine makes of prompts: logits through its paged attention, and tokens through its scheduler.

Shape legend: T tokens of a prompt, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from glm_cluster.config import DtypeName, EngineConfig
from glm_cluster.engine.batch import Batch
from glm_cluster.engine.engine import Engine
from glm_cluster.engine.memory import allocate, block_bytes
from glm_cluster.engine.plan import Slice, StepPlan
from glm_cluster.model.backend import Backend, load_with_backend
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.glm import GlmForCausalLM
from glm_cluster.model.ranks import Ranks
from glm_cluster.model.sharding import Sharding
from glm_cluster.records import GenerationRequest, SamplingParams
from glm_cluster.verify.oracle import Ids, Questions
from glm_cluster.verify.thread_group import ThreadGroup, join_group, on_every_rank

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_TOKENS = 16
FOLLOW_LENGTH = ("dynamic", "longrope")  # rope types whose frequencies follow a length
CHUNK_TOKENS = 24  # no multiple of a block or a tile, and far less than the longest prompt


@dataclass(frozen=True, slots=True)
class Run:
    """The new ids of each prompt, and how many prompt tokens came from the prefix cache."""

    ids: tuple[Ids, ...]
    num_cached: int


@dataclass(frozen=True, slots=True)
class GroupAnswers:
    """What a group of ranks makes of the prompts in every way it can be asked."""

    logits: tuple["Tensor", ...]  # [T, V] of each prompt
    whole: Run  # each prompt in one step
    chunked: Run  # prompts cut into steps of CHUNK_TOKENS
    warm: Run  # once more, from the prefix cache


def ask_engine(directory: Path, questions: Questions, *, size: int) -> GroupAnswers:
    """Load a group of `size` ranks, ask, forget: logits first, then tokens, so that weights are in memory once."""
    ranks = join_group(size)
    logits = on_every_rank(size, lambda rank: _rank_logits(directory, questions, ranks[rank]))[0]
    config = _config(directory, questions, size)
    group = ThreadGroup(config, ranks, questions.unused)
    engine = group.engine(config)
    return GroupAnswers(
        logits=tuple(logits),
        whole=_drain(engine, questions, "whole"),
        warm=_drain(engine, questions, "warm"),
        chunked=_drain(group.engine(_config(directory, questions, size, step_tokens=CHUNK_TOKENS)), questions, "part"),
    )


def paged_logits(model: GlmForCausalLM, backend: Backend, prompts: Sequence[Ids]) -> "list[Tensor]":
    """Logits [T, V] of every position as the engine computes them; empty on ranks above 0."""
    import torch

    ranks, config = model.ranks, model.config
    num_blocks = max(map(_num_blocks, prompts))
    cache = allocate(
        model=config,
        shard=Sharding(config, ranks.rank, ranks.size),
        num_blocks=num_blocks + 1,
        block_tokens=BLOCK_TOKENS,
        dtype=model.dtype,
        device=ranks.device,
    )
    found = []
    with torch.inference_mode():
        for prompt in prompts:
            blocks = tuple(range(1, _num_blocks(prompt) + 1))
            plan = StepPlan((Slice("prompt", prompt, 0, blocks, samples=False),))
            batch = Batch.build(plan, block_tokens=BLOCK_TOKENS, device=ranks.device, row_multiple=backend.row_multiple)
            attend = backend.attention(cache, batch.ragged)
            hidden_TH = model.decoder.hidden(batch.ids_T, batch.positions_P, attend)
            logits_TV = model.sampled_logits(hidden_TH)  # the ranks meet here
            if logits_TV is not None:
                found.append(logits_TV[: len(prompt)])
    return found


def _num_blocks(prompt: Ids) -> int:
    return -(-len(prompt) // BLOCK_TOKENS)


def _rank_logits(directory: Path, questions: Questions, ranks: Ranks) -> "list[Tensor]":
    model: GlmForCausalLM
    model, backend = load_with_backend(directory, ranks=ranks, dtype=questions.dtype)
    model.decoder.rotary.fix_length(model.config.context_limit)
    return paged_logits(model, backend, questions.prompts)


def _config(directory: Path, questions: Questions, size: int, step_tokens: int | None = None) -> EngineConfig:
    dtype: DtypeName = "float32" if questions.dtype == "float32" else "bfloat16"
    config = EngineConfig(
        model=str(directory),
        tp=size,
        dtype=dtype,
        device="cpu",
        max_running=len(questions.prompts),
        step_tokens=step_tokens or sum(map(len, questions.prompts)),
        block_tokens=BLOCK_TOKENS,
        max_model_len=_max_len(questions),
    )
    stored = GlmConfig.from_directory(directory)
    return _as_served(config, stored) if stored.rope_parameters["rope_type"] in FOLLOW_LENGTH else config


def _as_served(config: EngineConfig, stored: GlmConfig) -> EngineConfig:
    """With the length that is served, which decides the frequencies; pages are taken as they are written."""
    import torch

    num_blocks = -(-stored.context_limit // BLOCK_TOKENS) + 1
    num_bytes = num_blocks * block_bytes(config, stored, Sharding(stored, 0, config.tp), torch.float32)
    return replace(config, max_model_len=stored.context_limit, kv_cache_bytes=num_bytes)


def _max_len(questions: Questions) -> int:
    return max(map(len, questions.prompts)) + questions.max_new_tokens


def _drain(engine: Engine, questions: Questions, name: str) -> Run:
    """Submit all prompts at once and run them to their end."""
    sampling = SamplingParams(
        max_tokens=questions.max_new_tokens, temperature=0.0, stop_token_ids=tuple(questions.eos_ids)
    )
    ids: dict[str, list[int]] = {}
    cached: dict[str, int] = {}
    for number, prompt in enumerate(questions.prompts):
        request_id = f"{name} {number}"
        ids[request_id] = []
        engine.add(GenerationRequest(request_id=request_id, prompt=prompt, sampling=sampling))
    while engine.has_work:
        for event in engine.step():
            ids[event.request_id] += event.tokens
            cached[event.request_id] = max(cached.get(event.request_id, 0), event.num_cached_tokens)
    return Run(tuple(map(tuple, ids.values())), sum(cached.values()))
