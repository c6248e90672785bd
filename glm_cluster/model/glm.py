"""The decoder and its language-model head. The same modules run unsharded and sharded, offline and in the engine.

Source: HF `GlmModel` and `GlmForCausalLM` (transformers 5.23). Parameter names are HF's.
Shape legend: T tokens (any leading dimensions before it), H hidden width, V vocabulary, R rows to sample.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_cluster.model.attention import Attend, PlainAttention
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.layers import DecoderLayer, RMSNorm, VocabEmbedding
from glm_cluster.model.ranks import Ranks
from glm_cluster.model.rope import RotaryEmbedding
from glm_cluster.model.sharding import Sharding


class GlmModel(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: GlmConfig, ranks: Ranks) -> None:
        super().__init__()
        self.embed_tokens = VocabEmbedding(config, ranks)
        self.layers = nn.ModuleList(DecoderLayer(config, ranks, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config)

    def forward(self, ids_T: Tensor, positions_T: Tensor, attend: Attend) -> Tensor:
        """Hidden states [..., T, H] of tokens at `positions_T`; `attend` keeps the keys and values."""
        x_TH = self.embed_tokens(ids_T)
        cos_TR, sin_TR = self.rotary(positions_T, x_TH.dtype)
        for layer in self.layers:
            x_TH = layer(x_TH, cos_TR, sin_TR, attend)
        return self.norm(x_TH)  # type: ignore[no-any-return]


class GlmForCausalLM(nn.Module):
    """`GlmModel` and the head over this rank's vocabulary rows; tied to the embedding where the config says so."""

    def __init__(self, config: GlmConfig, ranks: Ranks | None = None) -> None:
        super().__init__()
        self.config = config
        self.ranks = ranks or Ranks.single()
        rows = Sharding(config, self.ranks.rank, self.ranks.size).vocab_rows
        self.model = GlmModel(config, self.ranks)
        self.lm_head = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, rows, bias=False)

    def forward(self, ids_BT: Tensor, attend: PlainAttention | None = None) -> Tensor:
        """Logits [B, T, V] of the next tokens after those `attend` holds. Unsharded: sharded ranks sample by rows."""
        attend = attend or PlainAttention()
        positions_1T = torch.arange(ids_BT.shape[1], device=ids_BT.device).unsqueeze(0) + attend.num_tokens
        return F.linear(self.model(ids_BT, positions_1T, attend), self._head_weight())

    def sampled_logits(self, x_RH: Tensor) -> Tensor | None:
        """Logits [R, V] of the given hidden rows on rank 0, None on the others: the one gather of a step."""
        logits = self.ranks.gather(F.linear(x_RH, self._head_weight()))
        return None if logits is None else logits[:, : self.config.vocab_size]

    def _head_weight(self) -> Tensor:
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
