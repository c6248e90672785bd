"""Rotary position embedding as GLM has it: the first `rotary_dim` of a head, interleaved pairs.

Source: HF `GlmRotaryEmbedding` and `apply_rotary_pos_emb` (transformers 5.23); Su et al., arXiv:2104.09864.
Shape legend: T tokens, N heads, D head width, R rotated width (R <= D).
"""

import torch
from torch import Tensor, nn

from glm_cluster.model.config import GlmConfig


class RotaryEmbedding(nn.Module):
    """Cosines and sines of positions, computed in fp32 whatever dtype the model has."""

    inv_freq: Tensor

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self._theta = config.rope_theta
        self._dim = config.rotary_dim
        self.register_buffer("inv_freq", self.frequencies(torch.device("cpu")), persistent=False)

    def frequencies(self, device: torch.device) -> Tensor:
        """theta ** (-2i / R) for i in 0..R/2, fp32, shape [R / 2]."""
        exponents = torch.arange(0, self._dim, 2, dtype=torch.float32, device=device) / self._dim
        return 1.0 / (self._theta**exponents)

    def forward(self, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine [..., T, R], each frequency twice (once per element of its pair), cast to `dtype` last."""
        angles = positions_T[..., None].float() * self.inv_freq
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        return cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1)


def rotate(x_TND: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotate the first R of every head's D dimensions, in the dtype of x; the rest passes through."""
    width = cos_TR.shape[-1]
    cos, sin = cos_TR.unsqueeze(-2), sin_TR.unsqueeze(-2)
    turned, rest = x_TND[..., :width], x_TND[..., width:]
    return torch.cat([turned * cos + _quarter_turn(turned) * sin, rest], dim=-1)


def _quarter_turn(x: Tensor) -> Tensor:
    """(a, b) -> (-b, a) on each interleaved pair."""
    return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
