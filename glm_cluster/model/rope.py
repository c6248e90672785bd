"""Rotary position embedding as GLM has it: the first `rotary_dim` of a head, interleaved pairs.

Sources: HF `GlmRotaryEmbedding`, `apply_rotary_pos_emb` and `ROPE_INIT_FUNCTIONS` (transformers 5.23); Su et al.,
arXiv:2104.09864; YaRN: Peng et al., arXiv:2309.00071; LongRoPE: Ding et al., arXiv:2402.13753.
Shape legend: T tokens, N heads, D head width, R rotated width (R <= D), F = R / 2 frequencies.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from glm_cluster.model.config import GlmConfig

Frequencies: TypeAlias = tuple[Tensor, float]
"""fp32 [F], and the factor that multiplies cosines and sines."""


class RotaryEmbedding(nn.Module):
    """Cosines and sines of positions, computed in fp32 whatever dtype the model has.

    With `dynamic` and `longrope` the frequencies follow the length of what is being computed, as in HF: the longest
    position of a call decides for the whole call. A server cannot have that, since a request's neighbours would change
    its tokens: `fix_length` chooses the frequencies once.
    """

    def __init__(self, config: GlmConfig) -> None:
        super().__init__()
        self._config = config
        self._length: int | None = None  # dynamic: what the frequencies were made for
        self._is_fixed = False
        self._inv_freq: Tensor
        self._scaling: float
        self._set(frequencies(config))

    @property
    def inv_freq(self) -> Tensor:
        """The frequencies, fp32 [F]. No buffer: a model's `.to(dtype)` would round it."""
        return self._inv_freq

    def fix_length(self, num_tokens: int) -> None:
        """Use the frequencies for sequences of `num_tokens`, whatever is computed from now on."""
        self._set(frequencies(self._config, num_tokens))
        self._is_fixed = True

    @torch.no_grad()
    def forward(self, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine [..., T, R], each frequency twice (once per element of its pair), cast to `dtype` last."""
        if not self._is_fixed:
            self._follow(positions_T)
        if self._inv_freq.device != positions_T.device:
            self._inv_freq = self._inv_freq.to(positions_T.device)
        angles = positions_T[..., None].float() * self._inv_freq
        cos, sin = ((part * self._scaling).to(dtype) for part in (angles.cos(), angles.sin()))
        return cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1)

    def _set(self, made: Frequencies) -> None:
        self._inv_freq, self._scaling = made

    def _follow(self, positions_T: Tensor) -> None:
        """HF's `dynamic_rope_update`: grow with the longest position seen, go back once all are short again."""
        kind = self._config.rope_parameters["rope_type"]
        if kind not in ("dynamic", "longrope"):
            return
        length = int(positions_T.max()) + 1
        if kind == "longrope":
            self._set(frequencies(self._config, length))
            return
        trained = self._config.max_position_embeddings
        if length > (self._length or trained):
            self._length = length
            self._set(frequencies(self._config, length))
        if length < trained and self._length is not None:
            self._length = None
            self._set(frequencies(self._config))


def rotate(x_TND: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotate the first R of every head's D dimensions, in the dtype of x; the rest passes through."""
    width = cos_TR.shape[-1]
    cos, sin = cos_TR.unsqueeze(-2), sin_TR.unsqueeze(-2)
    turned, rest = x_TND[..., :width], x_TND[..., width:]
    return torch.cat([turned * cos + _quarter_turn(turned) * sin, rest], dim=-1)


def frequencies(config: GlmConfig, num_tokens: int | None = None) -> Frequencies:
    """The frequencies of the config's rope type for sequences of `num_tokens` (None: short ones), on the CPU."""
    with torch.device("cpu"):
        return _KINDS[config.rope_parameters["rope_type"]](config, num_tokens)


def _quarter_turn(x: Tensor) -> Tensor:
    """(a, b) -> (-b, a) on each interleaved pair."""
    return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)


def _exponents(config: GlmConfig) -> Tensor:
    """2i / R for i in 0..F."""
    return torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim


def _plain(config: GlmConfig, theta: float | Tensor | None = None) -> Tensor:
    """theta ** (-2i / R)."""
    return 1.0 / ((config.rope_theta if theta is None else theta) ** _exponents(config))


def _default(config: GlmConfig, num_tokens: int | None) -> Frequencies:
    return _plain(config), 1.0


def _linear(config: GlmConfig, num_tokens: int | None) -> Frequencies:
    return _plain(config) / config.rope_parameters["factor"], 1.0


def _dynamic(config: GlmConfig, num_tokens: int | None) -> Frequencies:
    """NTK: the base grows with the length, so that the slowest frequency is interpolated and the fastest is not."""
    factor, trained, width = config.rope_parameters["factor"], config.max_position_embeddings, config.rotary_dim
    # HF knows a call's length as a tensor, so that what follows rounds to fp32
    length = trained if num_tokens is None else torch.tensor(max(num_tokens, trained))
    stretched = (factor * length / trained) - (factor - 1)
    return _plain(config, config.rope_theta * stretched ** (width / (width - 2))), 1.0


def _yarn(config: GlmConfig, num_tokens: int | None) -> Frequencies:
    """Interpolate slow frequencies, keep fast ones, a linear ramp between (YaRN, section 3.2).

    By the factor given, as in HF 5.23. 5.0.0rc1 puts max_position_embeddings / original in its place: 1 for the
    published GLM-4-0414 form (32768 positions, factor 4, original 32768), which then stretches nothing.
    """
    rope, width = config.rope_parameters, config.rotary_dim
    factor, original = rope["factor"], rope["original_max_position_embeddings"]

    def dimension(num_rotations: float) -> float:
        turns = original / (num_rotations * 2 * math.pi)
        return (width * math.log(turns)) / (2 * math.log(config.rope_theta))

    low, high = dimension(rope.get("beta_fast") or 32), dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    kept_F = 1 - ((torch.arange(width // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    powers_F = config.rope_theta ** _exponents(config)
    return (1.0 / (factor * powers_F)) * (1 - kept_F) + (1.0 / powers_F) * kept_F, _yarn_scaling(config)


def _yarn_scaling(config: GlmConfig) -> float:
    """The attention temperature of YaRN (section 3.4), folded into cosines and sines."""
    rope = config.rope_parameters

    def scale(weight: float) -> float:
        return 1.0 if rope["factor"] <= 1 else 0.1 * weight * math.log(rope["factor"]) + 1.0

    if (given := rope.get("attention_factor")) is not None:
        return float(given)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    return scale(1.0)


def _longrope(config: GlmConfig, num_tokens: int | None) -> Frequencies:
    """One factor a frequency: those for long sequences once they outgrow the original length."""
    rope = config.rope_parameters
    original = rope["original_max_position_embeddings"]
    is_long = num_tokens is not None and num_tokens > original
    factors_F = torch.tensor(rope["long_factor" if is_long else "short_factor"], dtype=torch.float32)
    inv_freq_F = 1.0 / (factors_F * config.rope_theta ** _exponents(config))
    if (given := rope.get("attention_factor")) is not None:
        return inv_freq_F, float(given)
    factor = rope.get("factor") or config.max_position_embeddings / original
    return inv_freq_F, 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def _llama3(config: GlmConfig, num_tokens: int | None) -> Frequencies:
    """Long wavelengths are interpolated, short ones kept, those between blended."""
    rope, inv_freq_F = config.rope_parameters, _plain(config)
    factor, slow, fast = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    wavelength_F = 2 * math.pi / inv_freq_F
    is_long_F, is_short_F = wavelength_F > original / slow, wavelength_F < original / fast
    scaled_F = torch.where(is_long_F, inv_freq_F / factor, inv_freq_F)
    smooth_F = (original / wavelength_F - slow) / (fast - slow)
    blended_F = (1 - smooth_F) * scaled_F / factor + smooth_F * scaled_F
    return torch.where(~is_short_F & ~is_long_F, blended_F, scaled_F), 1.0


_KINDS: dict[str, Callable[[GlmConfig, int | None], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
