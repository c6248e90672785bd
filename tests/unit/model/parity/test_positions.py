"""Cosines and sines of every rope type against transformers. Bound: every bit, in fp32 and after the cast to bf16.

Up to the last position of the 128K and 1M checkpoints, where an angle computed in another order or dtype has long
left HF's.
"""

from typing import Any

import pytest
import torch
from support.parity import ROPES, rope
from support.positions import HEAD, LONG, Both, last_position, reached

from glm_cluster.model.config import GlmConfig
from glm_cluster.model.rope import RotaryEmbedding, frequencies

SMALL = {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LONG)
def test_positions_of_long_checkpoints(name: str, dtype: torch.dtype) -> None:
    Both(**HEAD, **LONG[name]).check(reached(last_position(name)), dtype)


@pytest.mark.parametrize("name", ROPES)
def test_frequencies_and_scaling(name: str) -> None:
    keys = {**SMALL, **ROPES[name]}
    both = Both(**keys)
    inv_freq, scaling = frequencies(GlmConfig(**keys))
    assert inv_freq.dtype == torch.float32
    assert torch.equal(inv_freq, both.theirs.inv_freq)
    assert scaling == both.theirs.attention_scaling


YARNS: dict[str, dict[str, Any]] = {
    "factor 1": {"factor": 1.0},
    "mscale": {"factor": 8.0, "mscale": 0.7, "mscale_all_dim": 1.2},
    "mscale alone": {"factor": 8.0, "mscale": 0.7},
    "not truncated": {"factor": 8.0, "truncate": False},
    "one ramp": {"factor": 8.0, "beta_fast": 1, "beta_slow": 1},
    "attention factor": {"factor": 8.0, "attention_factor": 0.9},
}


@pytest.mark.parametrize("name", YARNS)
def test_options_of_yarn(name: str) -> None:
    keys = {**HEAD, "max_position_embeddings": 32768 * 8}
    keys["rope_parameters"] = rope("yarn", original_max_position_embeddings=32768, **YARNS[name])
    Both(**keys).check(reached(65536))


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_yarn_as_the_cards_of_glm_4_0414_have_it(spelling: str) -> None:
    """32768 positions stay in the file; the factor alone says that they are to be 131072."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    if spelling == "rope_parameters":
        yarn = rope("yarn", factor=4.0, original_max_position_embeddings=32768)
    keys: dict[str, Any] = {**HEAD, "max_position_embeddings": 32768, spelling: yarn}
    Both(**keys).check(reached(131071))
    assert GlmConfig(**keys).context_limit == 131072
    stretched = frequencies(GlmConfig(**keys))[0]
    assert not torch.equal(stretched, frequencies(GlmConfig(**HEAD))[0])


def test_yarn_scales_cosines_and_sines() -> None:
    """Attention temperature: without it, position 0 would have cosine 1."""
    cos, _ = RotaryEmbedding(GlmConfig(**HEAD, **LONG["glm-4-9b-0414, yarn to 128K"]))(torch.tensor([0]), torch.float32)
    assert cos.tolist() == [pytest.approx([0.1 * 1.3862943611198906 + 1.0] * 64)]


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_lengths_are_crossed_and_crossed_back(name: str) -> None:
    """Growth, growth again, a shorter call that keeps, one short enough to go back: each as HF does."""
    rope_keys = {k: v for k, v in ROPES[name].items() if k != "original_max_position_embeddings"}
    if name == "longrope":
        rope_keys["rope_parameters"] = {**rope_keys["rope_parameters"], "original_max_position_embeddings": 12}
    both = Both(**SMALL, **rope_keys)
    for length in (5, 12, 13, 30, 20, 12, 11, 40, 3):
        both.check(torch.arange(length))


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_a_fixed_length_no_longer_follows(name: str) -> None:
    """A server's neighbours must not change a request's tokens: short calls get the long frequencies too."""
    keys = {**SMALL, **ROPES[name]}
    fixed, follows = RotaryEmbedding(GlmConfig(**keys)), RotaryEmbedding(GlmConfig(**keys))
    fixed.fix_length(30)
    long_cos, _ = follows(torch.arange(30), torch.float32)
    cos, _ = fixed(torch.arange(5), torch.float32)
    assert torch.equal(cos, long_cos[:5])
    assert not torch.equal(cos, follows(torch.arange(5), torch.float32)[0])


@pytest.mark.parametrize("name", ["default", "yarn", "llama3", "linear"])
def test_fixing_a_length_changes_nothing_elsewhere(name: str) -> None:
    rotary = RotaryEmbedding(GlmConfig(**SMALL, **ROPES[name]))
    before = rotary(torch.arange(50), torch.float32)
    rotary.fix_length(50)
    assert all(torch.equal(a, b) for a, b in zip(rotary(torch.arange(50), torch.float32), before, strict=True))
