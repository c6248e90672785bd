"""One GLM decoder layer, sharded or not: the rank holds its heads and its MLP columns.

Source: HF `GlmDecoderLayer`, `GlmAttention`, `GlmMLP`, `GlmRMSNorm` and `Glm4DecoderLayer` (transformers 5.23); the
order of operations is HF's, so that an unsharded forward gives HF's bits.
Shape legend: T tokens (any leading dimensions before it), H hidden width, N heads of this rank, K KV heads of this
rank, D head width, F MLP columns of this rank.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_cluster.model.attention import Attend
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.ranks import Ranks
from glm_cluster.model.rope import rotate
from glm_cluster.model.sharding import Sharding

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class RMSNorm(nn.Module):
    """Root mean square norm with HF's rounding: fp32 inside, cast to the input's dtype, then times the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_TH: Tensor) -> Tensor:
        wide = x_TH.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        out: Tensor = self.weight * wide.to(x_TH.dtype)
        return out


class Attention(nn.Module):
    """Grouped-query attention over this rank's heads; one all-reduce after `o_proj`."""

    def __init__(self, config: GlmConfig, ranks: Ranks, layer: int) -> None:
        super().__init__()
        shard = Sharding(config, ranks.rank, ranks.size)
        self.layer, self._head_dim, self._ranks = layer, config.head_dim, ranks
        q_width, kv_width = shard.num_heads * config.head_dim, shard.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(q_width, config.hidden_size, bias=False)

    def forward(self, x_TH: Tensor, cos_TR: Tensor, sin_TR: Tensor, attend: Attend) -> Tensor:
        q_TND = rotate(self._heads(self.q_proj(x_TH)), cos_TR, sin_TR)
        k_TKD = rotate(self._heads(self.k_proj(x_TH)), cos_TR, sin_TR)
        v_TKD = self._heads(self.v_proj(x_TH))
        mixed_TND = attend(self.layer, q_TND, k_TKD, v_TKD)
        return self._ranks.sum(self.o_proj(mixed_TND.flatten(-2)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self._head_dim)


class MLP(nn.Module):
    """Gated activation (SiLU in every published GLM) over this rank's columns.

    Rows of `gate_up_proj` are this rank's gates, then its ups.
    """

    def __init__(self, config: GlmConfig, ranks: Ranks) -> None:
        super().__init__()
        shard = Sharding(config, ranks.rank, ranks.size)
        self._ranks, self._act = ranks, _ACTIVATIONS[config.hidden_act]
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * shard.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shard.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_TH: Tensor) -> Tensor:
        gate_TF, up_TF = self.gate_up_proj(x_TH).chunk(2, dim=-1)
        return self._ranks.sum(self.down_proj(up_TF * self._act(gate_TF)))


class DecoderLayer(nn.Module):
    """Pre-norm attention, then pre-norm MLP, each added to the residual: two all-reduces.

    `glm4` normalises what each of the two gives once more before it is added.
    """

    def __init__(self, config: GlmConfig, ranks: Ranks, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, ranks, layer)
        self.mlp = MLP(config, ranks)
        self.input_layernorm = _norm(config)
        self.post_attention_layernorm = _norm(config)
        self.post_self_attn_layernorm = _norm(config) if config.has_sublayer_norms else None
        self.post_mlp_layernorm = _norm(config) if config.has_sublayer_norms else None

    def forward(self, x_TH: Tensor, cos_TR: Tensor, sin_TR: Tensor, attend: Attend) -> Tensor:
        mixed_TH = self.self_attn(self.input_layernorm(x_TH), cos_TR, sin_TR, attend)
        if self.post_self_attn_layernorm is not None:
            mixed_TH = self.post_self_attn_layernorm(mixed_TH)
        x_TH = x_TH + mixed_TH
        fed_TH = self.mlp(self.post_attention_layernorm(x_TH))
        if self.post_mlp_layernorm is not None:
            fed_TH = self.post_mlp_layernorm(fed_TH)
        out_TH: Tensor = x_TH + fed_TH
        return out_TH


def _norm(config: GlmConfig) -> RMSNorm:
    return RMSNorm(config.hidden_size, config.rms_norm_eps)


class VocabEmbedding(nn.Module):
    """Token embedding split by vocabulary rows: each rank looks up its own ids, one all-reduce joins them.

    The row of `padding_idx` gets no gradient, as in `nn.Embedding`.
    """

    def __init__(self, config: GlmConfig, ranks: Ranks) -> None:
        super().__init__()
        shard = Sharding(config, ranks.rank, ranks.size)
        self._first, self._rows, self._ranks = ranks.rank * shard.vocab_rows, shard.vocab_rows, ranks
        self.num_embeddings, self.embedding_dim = shard.vocab_rows, config.hidden_size
        self.padding_idx = _padding_row(config) if ranks.size == 1 else None
        self.weight = nn.Parameter(torch.empty(shard.vocab_rows, config.hidden_size))

    def forward(self, ids_T: Tensor) -> Tensor:
        if self._ranks.size == 1:
            return F.embedding(ids_T, self.weight, self.padding_idx)
        local_T = ids_T - self._first
        mine_T = (local_T >= 0) & (local_T < self._rows)
        x_TH = F.embedding(local_T.clamp(0, self._rows - 1), self.weight)
        return self._ranks.sum(x_TH.masked_fill(~mine_T.unsqueeze(-1), 0))


def _padding_row(config: GlmConfig) -> int | None:
    """HF's words for a padding id without a row, which tiny vocabularies meet by GLM-4's default of 151329."""
    pad = config.pad_token_id
    if pad is None:
        return None
    if not -config.vocab_size <= pad < config.vocab_size:
        raise AssertionError(
            f"Padding_idx must be within num_embeddings: pad_token_id {pad}, vocab_size {config.vocab_size}; "
            "set pad_token_id in the config"
        )
    return pad % config.vocab_size
