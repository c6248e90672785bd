"""THUDM's own `chatglm` checkpoints (glm-4-9b and -chat, codegeex4, LongWriter, ...): their tensors by HF's names.

Pure mappings on names and shapes: no torch, no files. Source: THUDM's `ChatGLMModel` (GLM-4 repository)
and HF's conversion script for `glm`; the hidden states of both agree on the mapped weights.
"""

from dataclasses import dataclass, replace

from glm_cluster.model.config import GlmConfig
from glm_cluster.model.sharding import Shard

_TOP = {
    "model.embed_tokens.weight": "transformer.embedding.word_embeddings.weight",
    "model.norm.weight": "transformer.encoder.final_layernorm.weight",
    "lm_head.weight": "transformer.output_layer.weight",
}
_IN_LAYER = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "self_attn.o_proj": "self_attention.dense",
    "mlp.gate_up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}
_FUSED = "self_attention.query_key_value"
IGNORED = ("transformer.rotary_pos_emb.inv_freq",)


@dataclass(frozen=True, slots=True)
class ChatglmLayout:
    """Where THUDM's files keep what HF's names mean.

    q, k and v are rows of one tensor: all of q, then k, then v where KV heads are shared; head by head otherwise.
    """

    config: GlmConfig
    fused_by_head: bool  # multi_query_attention: false

    def locate(self, name: str, shard: Shard) -> tuple[str, Shard]:
        """The stored tensor that holds `shard` of the tensor HF calls `name`, and the shard of it."""
        if name in _TOP:
            return _TOP[name], shard
        if not name.startswith("model.layers."):
            return name, shard  # a head of ours
        index, _, inner = name.removeprefix("model.layers.").partition(".")
        module, _, kind = inner.rpartition(".")
        stored = f"transformer.encoder.layers.{index}."
        if module in _IN_LAYER:
            return f"{stored}{_IN_LAYER[module]}.{kind}", shard
        return f"{stored}{_FUSED}.{kind}", self._rows(module.removeprefix("self_attn.")[0], shard)

    def _rows(self, part: str, shard: Shard) -> Shard:
        """The rows of q, k or v as rows of the fused tensor."""
        c = self.config
        q_rows, kv_rows = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        full = (q_rows + 2 * kv_rows, *shard.full[1:])
        if self.fused_by_head:
            ranges = tuple(piece for span in shard.ranges for piece in self._by_head("qkv".index(part), *span))
        else:
            first = {"q": 0, "k": q_rows, "v": q_rows + kv_rows}[part]
            ranges = tuple((first + start, first + stop) for start, stop in shard.ranges)
        return replace(shard, full=full, ranges=ranges)

    def _by_head(self, place: int, start: int, stop: int) -> list[tuple[int, int]]:
        """Rows start..stop of whole heads, each of which is followed by those of the other two parts."""
        width = self.config.head_dim
        heads = range(start // width, stop // width)
        return [((3 * head + place) * width, (3 * head + place + 1) * width) for head in heads]
