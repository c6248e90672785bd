"""Sampling is a pure function of (row, parameters, seed, position), filters as HF has them."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from glm_cluster.engine.sampler import _mass, philox_uniform, sample
from glm_cluster.records import SamplingParams

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def _params(**changes: float | None) -> SamplingParams:
    return SamplingParams(max_tokens=1, **{"temperature": 1.0, **changes})


def _frequencies(params: SamplingParams, count: int = 4000) -> dict[int, float]:
    tokens = sample(LOGITS.expand(count, -1), [params] * count, range(count))
    return {token: n / count for token, n in sorted(Counter(tokens).items())}


def test_philox_known_answers() -> None:
    """Random123's kat_vectors for philox4x32-10: the all-zero counter and key give 6627e8d5 e169c58d ..."""
    bits = (0x6627E8D5 << 21) ^ (0xE169C58D >> 11)
    value = philox_uniform(torch.tensor([0]), torch.tensor([0])).item()
    assert value == bits * 2.0**-53


def test_uniform_is_in_range_and_spread() -> None:
    x = philox_uniform(torch.full((20000,), 2**63 - 1), torch.arange(20000))
    assert 0 <= x.min() < 0.001
    assert 0.999 < x.max() < 1
    assert abs(x.mean() - 0.5) < 0.01


def test_temperature_zero_is_greedy() -> None:
    assert sample(LOGITS.flip(0).unsqueeze(0), [_params(temperature=0.0)], [3]) == [5]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_frequencies_follow_the_softmax(temperature: float) -> None:
    """4000 draws with fixed seeds: a fixed number, within 3 % of the probabilities."""
    wanted = (LOGITS / temperature).softmax(-1)
    seen = _frequencies(_params(temperature=temperature, seed=11))
    assert all(abs(seen.get(i, 0) - p) < 0.03 for i, p in enumerate(wanted.tolist()))


@pytest.mark.parametrize(
    "changes",
    [
        {"top_k": 3},
        {"top_p": 0.8},
        {"top_p": 0.0},
        {"min_p": 0.2},
        {"top_k": 4, "top_p": 0.9, "min_p": 0.1, "temperature": 1.3},
    ],
    ids=str,
)
def test_filters_keep_what_hf_keeps(changes: dict[str, float]) -> None:
    from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
    from transformers.generation import TemperatureLogitsWarper

    warpers = LogitsProcessorList([TemperatureLogitsWarper(changes.get("temperature", 1.0))])
    if "top_k" in changes:
        warpers.append(TopKLogitsWarper(int(changes["top_k"])))
    if "top_p" in changes:
        warpers.append(TopPLogitsWarper(changes["top_p"]))
    if "min_p" in changes:
        warpers.append(MinPLogitsWarper(changes["min_p"]))
    wanted = warpers(torch.zeros(1, 1, dtype=torch.long), LOGITS.unsqueeze(0)).softmax(-1)[0]
    seen = _frequencies(_params(seed=5, **changes))
    assert set(seen) == {i for i, p in enumerate(wanted.tolist()) if p > 0}
    assert all(abs(seen[i] - wanted[i].item()) < 0.03 for i in seen)


def test_a_row_does_not_see_its_neighbours() -> None:
    g = torch.Generator().manual_seed(2)
    rows = torch.randn(9, 300, generator=g)
    params = [_params(seed=i, top_k=i * 3 or None, temperature=i % 3 / 2) for i in range(9)]
    together = sample(rows, params, range(9))
    assert together == [sample(rows[i : i + 1], [params[i]], [i])[0] for i in range(9)]


def test_seed_and_position_both_count() -> None:
    draws = {
        (seed, position): sample(torch.zeros(1, 5000), [_params(seed=seed)], [position])[0]
        for seed in (0, 1, 2**40)
        for position in (0, 1, 2**35)
    }
    assert len(set(draws.values())) == len(draws)


@pytest.mark.parametrize("temperature", [1e-300, 1e-38, 5e-324])
def test_a_vanishing_temperature_is_greedy_not_fatal(temperature: float) -> None:
    """Division by it overflowed fp32: softmax gave NaN, the draw indexed -1, and the engine died with its group."""
    assert sample(LOGITS.unsqueeze(0), [_params(temperature=temperature)], [0]) == [0]


def test_nan_logits_harm_only_their_row() -> None:
    rows = torch.stack([torch.full((6,), float("nan")), LOGITS])
    params = [_params(seed=1), _params(seed=1)]
    tokens = sample(rows, params, [0, 7])
    assert 0 <= tokens[0] < 6
    assert tokens[1] == sample(LOGITS.unsqueeze(0), [params[1]], [7])[0]


def test_top_k_may_exceed_the_vocabulary() -> None:
    assert _frequencies(_params(seed=3, top_k=2**31 - 1)) == _frequencies(_params(seed=3))


def test_what_is_drawn_depends_on_no_order_of_adding_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a device adds up in parallel, in an order of its own."""

    def pairwise(values: Tensor, dim: int) -> Tensor:
        for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
            values = torch.cat((values[:, :step], values[:, step:] + values[:, :-step]), dim)
        return values

    logits = torch.randn((64, 1000), generator=torch.Generator().manual_seed(5)) * 4
    probs = logits.softmax(-1).sort(-1, descending=True).values
    params = [SamplingParams(max_tokens=1, seed=row, top_p=0.1 + row / 80) for row in range(64)]
    tokens, mass = sample(logits, params, range(64)), _mass(probs)
    monkeypatch.setattr(Tensor, "cumsum", pairwise)
    assert _mass(probs).equal(mass)
    assert sample(logits, params, range(64)) == tokens
