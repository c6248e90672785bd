"""THUDM's own `chatglm` checkpoints (glm-4-9b and -chat, codegeex4, LongWriter, ...): keys and tensor names as HF's.

Pure mappings on names, shapes and config keys: no torch, no files. Source: THUDM's `ChatGLMModel` (GLM-4 repository)
and HF's conversion script for `glm`; the hidden states of both agree on the mapped weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from glm_cluster.errors import ConfigError
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.sharding import Shard

BASE_THETA = 10000.0
# THUDM's key -> HF's, and THUDM's own value where the key is absent
_RENAMED: Mapping[str, tuple[str, Any]] = {
    "padded_vocab_size": ("vocab_size", 65024),
    "hidden_size": ("hidden_size", 4096),
    "ffn_hidden_size": ("intermediate_size", 13696),
    "num_layers": ("num_hidden_layers", 28),
    "num_attention_heads": ("num_attention_heads", 32),
    "kv_channels": ("head_dim", 128),
    "seq_length": ("max_position_embeddings", 2048),
    "layernorm_epsilon": ("rms_norm_eps", 1e-5),
    "add_qkv_bias": ("attention_bias", False),
}
_KEPT = (
    "attention_dropout",
    "hidden_dropout",
    "classifier_dropout",
    "use_cache",
    "tie_word_embeddings",
    "eos_token_id",
    "pad_token_id",
    "bos_token_id",
    "torch_dtype",
    "dtype",
    "id2label",
    "num_labels",
    "problem_type",
)
# key -> the one value that HF's `glm` computes, and the value where the key is absent
_FIXED: Mapping[str, tuple[object, object]] = {
    "rmsnorm": (True, True),
    "add_bias_linear": (False, False),
    "post_layer_norm": (True, True),
    "apply_residual_connection_post_layernorm": (False, False),
    "original_rope": (True, True),
    "fp32_residual_connection": (False, False),
    "pre_seq_len": (None, None),
    "quantization_bit": (0, 0),
}
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


def hf_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of HF's `GlmConfig` for a `chatglm` config.json; ConfigError where `glm` would compute otherwise."""
    for key, (wanted, absent) in _FIXED.items():
        value = raw.get(key, absent)
        if value != wanted and not (value is None and absent == 0):
            raise ConfigError(f"{key} is {value!r} in this chatglm checkpoint; only {wanted!r} is a GLM-4 layout")
    ratio = raw.get("rope_ratio", 1)
    if not isinstance(ratio, int | float) or isinstance(ratio, bool) or ratio <= 0:
        raise ConfigError(f"rope_ratio must be a number above 0, not {ratio!r}")
    keys: dict[str, Any] = {name: raw[name] for name in _KEPT if name in raw}
    keys |= {new: raw.get(old, absent) for old, (new, absent) in _RENAMED.items()}
    shares = raw.get("multi_query_attention", False)
    keys["num_key_value_heads"] = raw.get("multi_query_group_num", 1) if shares else keys["num_attention_heads"]
    return {**keys, "model_type": "glm", "rope_theta": BASE_THETA * ratio, "partial_rotary_factor": 0.5}


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
