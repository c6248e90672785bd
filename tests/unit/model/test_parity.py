"""The plain forward gives Hugging Face's bits, in fp32 and bf16, over the options of the architecture."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.checkpoints import oracle, oracle_greedy

from glm_cluster.model.loading import load_model
from glm_cluster.model.ranks import Ranks

GRID = [
    {"attention_bias": True, "tie_word_embeddings": False},
    {"attention_bias": False, "tie_word_embeddings": True, "partial_rotary_factor": 1.0},
    {"num_attention_heads": 8, "num_key_value_heads": 8},
    {
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
    },
    {"head_dim": 64, "num_key_value_heads": 1, "rms_norm_eps": 1e-5},
]


@pytest.mark.parametrize("changes", GRID, ids=",".join)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_bit_equal(checkpoint: Callable[..., Path], changes: dict, dtype: str) -> None:
    directory = checkpoint(**changes)
    ids = torch.randint(2, 301, (2, 33), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        theirs = oracle(directory, dtype)(ids).logits
        ours = load_model(directory, ranks=Ranks.single(), dtype=dtype)(ids).logits
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_greedy_ids_equal_generate(checkpoint: Callable[..., Path], dtype: str) -> None:
    directory = checkpoint()
    prompt = tuple(range(2, 30))
    model = load_model(directory, ranks=Ranks.single(), dtype=dtype)
    ours = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
    assert tuple(ours[0, len(prompt) :].tolist()) == oracle_greedy(oracle(directory, dtype), prompt, 24)


def test_cached_chunks_stay_close_to_the_whole(checkpoint: Callable[..., Path]) -> None:
    """A chunk after a cache is masked: without the mask its first rows would see the future (error of order 1)."""
    model = load_model(checkpoint(), ranks=Ranks.single())
    ids = torch.randint(2, 301, (1, 20), generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        first = model(ids[:, :9], use_cache=True)
        second = model(ids[:, 9:], past_key_values=first.past_key_values)
        parts = torch.cat([first.logits, second.logits], dim=1)
        torch.testing.assert_close(parts, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_dtype_auto_follows_the_config(checkpoint: Callable[..., Path]) -> None:
    assert load_model(checkpoint(dtype="bfloat16"), ranks=Ranks.single()).model.norm.weight.dtype == torch.bfloat16
    assert load_model(checkpoint(), ranks=Ranks.single()).model.norm.weight.dtype == torch.float32


def test_rotary_frequencies_stay_fp32(checkpoint: Callable[..., Path]) -> None:
    model = load_model(checkpoint(), ranks=Ranks.single(), dtype="bfloat16")
    assert model.model.rotary.inv_freq.dtype == torch.float32
