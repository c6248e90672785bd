"""THUDM's own `chatglm` config.json in the keys of HF's `GlmConfig`. A pure mapping: no torch, no files.

Source: THUDM's `ChatGLMConfig` (GLM-4 repository), whose defaults an absent key has, and HF's conversion script.
"""

from collections.abc import Mapping
from typing import Any

from glm_cluster.errors import ConfigError
from glm_cluster.model.rope_parameters import is_positive

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


# Neither is true of what is read here: they name THUDM's classes and the code beside them.
_OF_ITS_CODE = ("auto_map", "architectures")
_SPENT = {*_RENAMED, *_FIXED, *_OF_ITS_CODE, "rope_ratio", "multi_query_attention", "multi_query_group_num"}


def hf_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of HF's `GlmConfig` for a `chatglm` config.json; ConfigError where `glm` would compute otherwise.

    Keys that are neither translated nor checked are passed on, `rope_scaling` among them.
    """
    for key, (wanted, absent) in _FIXED.items():
        value = raw.get(key, absent)
        if value != wanted and not (value is None and absent == 0):
            raise ConfigError(f"{key} is {value!r} in this chatglm checkpoint; only {wanted!r} is a GLM-4 layout")
    ratio = raw.get("rope_ratio", 1)
    if not is_positive(ratio):
        raise ConfigError(f"rope_ratio must be a finite number above 0, not {ratio!r}")
    keys: dict[str, Any] = {name: value for name, value in raw.items() if name not in _SPENT}
    keys |= {new: raw.get(old, absent) for old, (new, absent) in _RENAMED.items()}
    shares = raw.get("multi_query_attention", False)
    keys["num_key_value_heads"] = raw.get("multi_query_group_num", 1) if shares else keys["num_attention_heads"]
    return {**keys, "model_type": "glm", "rope_theta": BASE_THETA * ratio, "partial_rotary_factor": 0.5}
