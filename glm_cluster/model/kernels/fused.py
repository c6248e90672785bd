"""The decoder's modules in their fast form on a CPU: the same computation as `layers`, in few native calls.

Shape legend: T tokens, H hidden width.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from glm_cluster.model.attention import KvCache
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.kernels.native import DTYPES, Layer, Shape, address
from glm_cluster.model.kernels.packed import PackedLinear
from glm_cluster.model.kernels.paged import NativeAttention, point_at
from glm_cluster.model.layers import DecoderLayer, RMSNorm
from glm_cluster.model.ranks import Ranks
from glm_cluster.model.sharding import Sharding
from glm_cluster.records import Quantization


class FusedLayer(nn.Module):
    """One decoder layer, made of a plain one, whose weights it packs. Called as the plain one is.

    A call ends wherever ranks add up their parts.
    """

    def __init__(
        self, native: ctypes.CDLL, plain: DecoderLayer, config: GlmConfig, ranks: Ranks, quantization: Quantization
    ) -> None:
        super().__init__()
        attention, mlp = plain.self_attn, plain.mlp
        self._native, self._ranks, self._index = native, ranks, attention.layer
        self._cache: KvCache | None = None
        self._qkv = PackedLinear(native, [attention.q_proj, attention.k_proj, attention.v_proj], quantization)
        self._o = PackedLinear(native, [attention.o_proj], quantization)
        self._gate_up = PackedLinear(native, [mlp.gate_up_proj], quantization)
        self._down = PackedLinear(native, [mlp.down_proj], quantization)
        self._norms = [
            None if norm is None else norm.weight.detach()
            for norm in (
                plain.input_layernorm,
                plain.post_attention_layernorm,
                plain.post_self_attn_layernorm,
                plain.post_mlp_layernorm,
            )
        ]
        linears = (self._qkv, self._o, self._gate_up, self._down)
        self.layer = Layer(*(linear.packed for linear in linears), *map(address, self._norms))
        self.shape = _shape(config, Sharding(config, ranks.rank, ranks.size), plain.input_layernorm.weight.dtype)

    def forward(self, x_TH: Tensor, cos_TR: Tensor, sin_TR: Tensor, attend: NativeAttention) -> Tensor:
        native, shape, layer = self._native, self.shape, self.layer
        if attend.cache is not self._cache:
            self._cache = attend.cache
            point_at(self._cache, self._index, shape, [layer])
        step = attend.step(cos_TR, sin_TR)
        mixed_TH, sum_TH, fed_TH = (torch.empty_like(x_TH) for _ in range(3))
        native.glm_attention_half(shape, layer, step, address(x_TH), address(mixed_TH))
        mixed_TH = self._ranks.sum(mixed_TH)
        native.glm_mlp_half(shape, layer, step, *map(address, (x_TH, mixed_TH, sum_TH, fed_TH)))
        fed_TH = self._ranks.sum(fed_TH)
        native.glm_add(shape, layer, x_TH.shape[0], address(sum_TH), address(fed_TH))
        return sum_TH


class FusedStack(nn.Module):
    """All layers of a rank that is alone, in one native call: called as one layer is."""

    def __init__(self, native: ctypes.CDLL, layers: Sequence[FusedLayer]) -> None:
        super().__init__()
        self._native, self._shape = native, layers[0].shape
        self._owners = layers  # of what the structures point into
        self._cache: KvCache | None = None
        self._layers = (Layer * len(layers))(*(layer.layer for layer in layers))

    def forward(self, x_TH: Tensor, cos_TR: Tensor, sin_TR: Tensor, attend: NativeAttention) -> Tensor:
        out_TH = x_TH.clone()
        if attend.cache is not self._cache:
            self._cache = attend.cache
            point_at(self._cache, 0, self._shape, self._layers)
        step = attend.step(cos_TR, sin_TR)
        self._native.glm_layers(self._shape, self._layers, len(self._layers), step, address(out_TH))
        return out_TH


class FusedNorm(nn.Module):
    """`RMSNorm` in one native call."""

    def __init__(self, native: ctypes.CDLL, plain: RMSNorm) -> None:
        super().__init__()
        self._native, self._weight, self._eps = native, plain.weight.detach(), plain.eps

    def forward(self, x_TH: Tensor) -> Tensor:
        out_TH = torch.empty_like(x_TH)
        rows, width = x_TH.numel() // x_TH.shape[-1], x_TH.shape[-1]
        pointers = map(address, (x_TH, self._weight, out_TH))
        self._native.glm_norm(*pointers, rows, width, self._eps, DTYPES[x_TH.dtype])
        return out_TH


def _shape(config: GlmConfig, shard: Sharding, dtype: torch.dtype) -> Shape:
    return Shape(
        hidden=config.hidden_size,
        heads=shard.num_heads,
        kv_heads=shard.num_kv_heads,
        head_dim=config.head_dim,
        rotary_dim=config.rotary_dim,
        intermediate=shard.intermediate_size,
        norm_eps=config.rms_norm_eps,
        dtype=DTYPES[dtype],
    )
