"""Who computes an engine's steps, and what is said where it is not the fast one."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_cluster.errors import ConfigError
from glm_cluster.model import backend
from glm_cluster.model.attention import KvCache, Ragged
from glm_cluster.model.backend import Backend, NativeBackend, TorchBackend, load_with_backend
from glm_cluster.model.kernels.build import Refusal
from glm_cluster.model.kernels.fused import FusedStack
from glm_cluster.model.kernels.native import library
from glm_cluster.model.kernels.packed import PackedLinear
from glm_cluster.model.layers import DecoderLayer
from glm_cluster.model.loading import load_model
from glm_cluster.model.ranks import Ranks

needs_kernels = pytest.mark.skipif(isinstance(library(), Refusal), reason=getattr(library(), "reason", ""))
SINGLE = Ranks.single()
IDS = [3, 250, 17, 17, 99, 4, 280, 5, 6, 7]


def _hidden(model: Any, by: Backend) -> Tensor:
    """Hidden states of one prompt; more positions than tokens where rows are not padded, as in a step."""
    rows = -(-len(IDS) // by.row_multiple) * by.row_multiple
    padded = torch.tensor([*IDS, *[0] * (rows - len(IDS))])
    positions = torch.tensor([*range(len(IDS)), *[0] * (16 - len(IDS))])
    config = model.config
    size = (config.num_key_value_heads, 2, 16, config.head_dim)
    cache = KvCache(*([torch.zeros(size, dtype=model.dtype) for _ in range(config.num_hidden_layers)] for _ in "kv"))
    slots = [*range(16, 16 + len(IDS)), *[0] * (rows - len(IDS))]
    attend = by.attention(cache, Ragged(slots, [0], [len(IDS)], [0], [(1,)]))
    with torch.inference_mode():
        hidden: Tensor = model.decoder.hidden(padded, positions[: max(rows, 16)], attend)
    return hidden[: len(IDS)]


@needs_kernels
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 4e-2)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": True},
        {"model_type": "glm4"},
        {"num_attention_heads": 4, "num_key_value_heads": 1},
        {"hidden_size": 66, "intermediate_size": 90, "head_dim": 22, "partial_rotary_factor": 1.0},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "plain",
)
def test_both_compute_the_plain_forward(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], dtype: str, bound: float
) -> None:
    """Within `bound` of the largest hidden state: the same roundings, other orders of summation."""
    directory = checkpoint(**changes)
    wanted = load_model(directory, ranks=SINGLE, dtype=dtype).decoder(torch.tensor([IDS])).last_hidden_state[0].float()
    fast, native = load_with_backend(directory, ranks=SINGLE, dtype=dtype)
    assert isinstance(native, NativeBackend)
    monkeypatch.setattr(backend, "library", lambda: Refusal(reason="off"))
    slow, by_torch = load_with_backend(directory, ranks=SINGLE, dtype=dtype)
    for model, by in ((fast, native), (slow, by_torch)):
        assert (_hidden(model, by).float() - wanted).abs().max() < bound * wanted.abs().max()


@needs_kernels
def test_modules_are_in_their_fast_form_and_nothing_keeps_the_plain_weights(checkpoint: Callable[..., Path]) -> None:
    model, by = load_with_backend(checkpoint(), ranks=SINGLE)
    assert by.row_multiple == 1
    assert [type(layer) for layer in model.decoder.layers] == [FusedStack]
    assert isinstance(model.lm_head, PackedLinear)
    plain = {name for name, _ in model.named_parameters()}
    assert plain <= {"model.embed_tokens.weight"}


def test_without_kernels_it_says_why_and_is_slower(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend, "library", lambda: Refusal(reason="No C++ compiler."))
    with caplog.at_level(logging.WARNING):
        model, by = load_with_backend(checkpoint(), ranks=SINGLE)
    assert isinstance(by, TorchBackend)
    assert all(isinstance(layer, DecoderLayer) for layer in model.decoder.layers)
    assert "slower: No C++ compiler." in caplog.text


@pytest.mark.parametrize(
    ("changes", "dtype", "reason"),
    [({"hidden_act": "gelu"}, "float32", "gelu"), ({"intermediate_size": 95}, "bfloat16", "even widths")],
)
def test_what_the_kernels_do_not_do_is_left_to_torch(
    checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture, changes: dict[str, Any], dtype: str, reason: str
) -> None:
    _, by = load_with_backend(checkpoint(**changes), ranks=SINGLE, dtype=dtype)
    assert isinstance(by, TorchBackend)
    assert reason in caplog.text


def test_int8_without_kernels_is_refused_before_weights_are_read(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "library", lambda: Refusal(reason="No C++ compiler."))
    with pytest.raises(ConfigError, match=r"quantization int8 needs .* No C\+\+ compiler"):
        load_with_backend(checkpoint(), ranks=SINGLE, quantization="int8")


@needs_kernels
def test_where_one_rank_has_no_kernels_none_uses_them(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ranks cut their steps into the same rows, or their sums would not meet."""
    monkeypatch.setattr(Ranks, "least", lambda self, value: 0)
    _, by = load_with_backend(checkpoint(), ranks=SINGLE)
    assert isinstance(by, TorchBackend)
    assert "Another rank" in caplog.text


@needs_kernels
def test_int8_stays_near_the_plain_forward(checkpoint: Callable[..., Path]) -> None:
    directory = checkpoint(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3)
    wanted = load_model(directory, ranks=SINGLE, dtype="float32").decoder(torch.tensor([IDS])).last_hidden_state[0]
    model, by = load_with_backend(directory, ranks=SINGLE, dtype="bfloat16", quantization="int8")
    cosine = torch.nn.functional.cosine_similarity(_hidden(model, by).float(), wanted, dim=-1)
    assert cosine.median() > 0.995  # attention as peaked as that of these weights turns a few tokens further
