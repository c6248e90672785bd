"""Sharded equals unsharded, and the collectives of a step are exactly those the design allows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.engines import drain, drain_events, mixed_requests
from support.groups import join_threads, on_every_rank, open_group
from torch import Tensor

from glm_cluster.config import EngineConfig
from glm_cluster.engine.engine import open_engine
from glm_cluster.model.loading import load_model
from glm_cluster.model.ranks import Backend, Ranks
from glm_cluster.records import SamplingParams, TokenEvent, TokenLogprobs

pytestmark = pytest.mark.parallel

CASES = [
    ({}, 2),
    ({"model_type": "glm4"}, 2),  # norms after the sums
    ({}, 4),  # 2 KV heads on 4 ranks: replicated
    ({"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 96, "tie_word_embeddings": True}, 3),
    ({"attention_bias": False, "vocab_size": 299}, 2),  # an odd vocabulary: the last share is padded
]


class CountingRanks(Ranks):
    """Ranks that remember which collectives ran."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.calls: list[str] = []

    def sum(self, x: Tensor) -> Tensor:
        self.calls.append("sum")
        return super().sum(x)

    def gather(self, x: Tensor) -> Tensor | None:
        self.calls.append("gather")
        return super().gather(x)


@pytest.mark.parametrize(("changes", "size"), CASES, ids=str)
def test_a_group_gives_the_ids_of_one_rank(checkpoint: Callable[..., Path], changes: dict, size: int) -> None:
    config = EngineConfig(model=str(checkpoint(**changes)), dtype="float32")
    requests = mixed_requests(10, vocab_size=299, max_tokens=24)
    group, _ = open_group(config, size)
    assert drain(group, requests) == drain(open_engine(config), requests)


@pytest.mark.parametrize("size", [2, 4])
def test_choices_that_come_together_are_those_of_a_group_that_has_one_at_a_time(
    checkpoint: Callable[..., Path], size: int
) -> None:
    """They read what one of them writes in the same step, on every rank: to the bit."""
    (one,) = mixed_requests(1, vocab_size=301)
    one = replace(one, prompt=tuple(range(2, 90)), sampling=SamplingParams(max_tokens=9, temperature=0.9, logprobs=3))
    choices = [replace(one, request_id=f"{i}", sampling=replace(one.sampling, seed=i)) for i in range(5)]
    config = EngineConfig(model=str(checkpoint()))
    together, alone = open_group(config, size)[0], open_group(config, size)[0]
    events = drain_events(together, choices)
    assert [events[choice.request_id][0].num_cached_tokens for choice in choices] == [0, 80, 80, 80, 80]
    for choice in choices:
        (wanted,) = drain_events(alone, [choice]).values()
        assert [*_told(events[choice.request_id])] == [*_told(wanted)]
        assert [t for e in events[choice.request_id] for t in e.tokens] == [t for e in wanted for t in e.tokens]


def test_two_all_reduces_a_layer_one_for_the_embedding_one_gather(checkpoint: Callable[..., Path]) -> None:
    engine, ranks = open_group(EngineConfig(model=str(checkpoint())), 2, CountingRanks)
    for request in mixed_requests(3, vocab_size=301):
        engine.add(request)
    for rank in ranks:
        rank.calls.clear()
    engine.step()
    assert [rank.calls for rank in ranks] == [["sum"] * (1 + 2 * 3) + ["gather"]] * 2


def test_only_rank_0_needs_to_know_what_is_asked_of_the_logits(checkpoint: Callable[..., Path]) -> None:
    """Penalties, masks and log-probabilities of the prompt, which is gathered a few rows at a time."""
    config = EngineConfig(model=str(checkpoint()), dtype="float32", step_tokens=100)
    asked = {"presence_penalty": 0.5, "repetition_penalty": 1.2, "min_tokens": 4, "bad_words": ((7,), (5, 6))}
    requests = [
        replace(one, sampling=replace(one.sampling, **asked, logprobs=2, prompt_logprobs=1))
        for one in mixed_requests(6, vocab_size=301, max_tokens=12)
    ]
    group, _ = open_group(config, 2)
    ours, wanted = drain_events(group, requests), drain_events(open_engine(config), requests)
    for request in requests:
        told, expected = ([*_told(events[request.request_id])] for events in (ours, wanted))
        assert [one.logprob for one in told] == pytest.approx([one.logprob for one in expected], abs=1e-4)
        assert len(told) == len(request.prompt) - 1 + sum(len(e.tokens) for e in ours[request.request_id])


def _told(events: Sequence[TokenEvent]) -> Iterator[TokenLogprobs]:
    yield from (one for one in events[0].prompt_logprobs if one is not None)
    yield from (one for event in events for one in event.logprobs)


@pytest.mark.parametrize("backend", [None, "gloo"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_rows_sum_does_not_depend_on_its_place(size: int, backend: Backend | None) -> None:
    """gloo's own all-reduce fails this: its ring adds each part of the buffer in another order."""
    ranks = join_threads(size, backend=backend)
    parts = [torch.randn(64, 33, generator=torch.Generator().manual_seed(r)) for r in range(size)]
    whole = on_every_rank(size, lambda r: ranks[r].sum(parts[r].clone()))
    rows = on_every_rank(size, lambda r: [ranks[r].sum(parts[r][i : i + 1].clone()) for i in range(64)])
    assert all(torch.equal(w, whole[0]) for w in whole)
    assert torch.equal(torch.cat(rows[0]), whole[0])


def test_each_rank_holds_its_share_of_the_weights(checkpoint: Callable[..., Path]) -> None:
    directory = checkpoint(num_attention_heads=6, num_key_value_heads=3, intermediate_size=96)
    ranks = join_threads(3)
    whole = _num_bytes(load_model(directory, ranks=Ranks.single()))
    shares = on_every_rank(3, lambda r: _num_bytes(load_model(directory, ranks=ranks[r])))
    assert all(whole / 3 <= share < whole / 3 * 1.05 for share in shares)


def test_a_group_agrees_on_the_smallest_pool() -> None:
    ranks = join_threads(3)
    assert on_every_rank(3, lambda r: ranks[r].least(10 + r)) == [10, 10, 10]


def _num_bytes(model: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())
