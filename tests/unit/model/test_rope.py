"""The rotation itself: which elements form a pair, what is left alone, and in which dtype angles are made."""

import math

import torch

from glm_cluster.model.config import GlmConfig
from glm_cluster.model.rope import RotaryEmbedding, rotate

CONFIG = GlmConfig(hidden_size=32, num_attention_heads=2, head_dim=32)


def test_neighbours_are_a_pair() -> None:
    """Elements 2i and 2i + 1 turn by the angle of frequency i. Halves (i, i + R/2) would be another model."""
    x = torch.zeros(1, 1, 32)
    x[..., 2] = 1.0
    position, i = 3, 1
    turned = rotate(x, *RotaryEmbedding(CONFIG)(torch.tensor([position]), torch.float32))[0, 0]
    angle = position / 10000 ** (2 * i / 16)
    torch.testing.assert_close(turned[2:4], torch.tensor([math.cos(angle), math.sin(angle)]))
    assert turned.count_nonzero() == 2


def test_the_rest_of_a_head_passes_through() -> None:
    x = torch.randn(5, 2, 32)
    turned = rotate(x, *RotaryEmbedding(CONFIG)(torch.arange(5), torch.float32))
    assert torch.equal(turned[..., 16:], x[..., 16:])
    assert torch.equal(turned[0], x[0])
    assert not torch.isclose(turned[1:, :, :2], x[1:, :, :2]).any()


def test_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 32)
    rotary = RotaryEmbedding(CONFIG)

    def score(q_position: int, k_position: int) -> float:
        at = [rotary(torch.tensor([p]), torch.float32) for p in (q_position, k_position)]
        return float((rotate(q, *at[0]) * rotate(k, *at[1])).sum())

    assert math.isclose(score(7, 3), score(104, 100), rel_tol=1e-4, abs_tol=1e-4)


def test_angles_are_made_in_fp32_whatever_the_model_is_cast_to() -> None:
    """In bf16 position 257 would be 256."""
    rotary = RotaryEmbedding(CONFIG).to(torch.bfloat16)
    assert rotary.inv_freq.dtype == torch.float32
    cos, _ = rotary(torch.tensor([257]), torch.bfloat16)
    assert float(cos[0, 0]) == float(torch.tensor(math.cos(257)).bfloat16())


def test_rows_may_have_positions_of_their_own() -> None:
    positions_BT = torch.tensor([[0, 1, 2], [5, 6, 7]])
    cos, sin = RotaryEmbedding(CONFIG)(positions_BT, torch.float32)
    assert cos.shape == sin.shape == (2, 3, 16)
    assert torch.equal(cos[1], RotaryEmbedding(CONFIG)(torch.tensor([5, 6, 7]), torch.float32)[0])
