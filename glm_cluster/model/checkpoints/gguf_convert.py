"""A llama GGUF, written out again as a Hugging Face `glm` checkpoint.

Knows both layouts and why no weight is permuted: a llama GGUF keeps q and k rows in interleaved RoPE order, and that is
GLM's. Refuses to know where the GGUF came from or where the result will live.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from glm_cluster.errors import CheckpointError

CONTROL_TOKEN = 3  # gguf's tokenizer.ggml.token_type of a special token

RENAMED = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


class LlamaGguf:
    """One open GGUF file of architecture `llama`: its metadata and its dequantised tensors."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader = gguf.GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        if (architecture := self.value("general.architecture")) != "llama":
            raise CheckpointError(f"{path.name} holds a {architecture!r} model; only llama GGUFs can be converted")

    def value(self, key: str) -> Any:
        """Return a metadata value, or raise CheckpointError naming the key."""
        field = self._reader.fields.get(key)
        if field is None:
            raise CheckpointError(f"{self._path.name} has no {key}; fetch the file again")
        return field.contents()

    def tensor(self, name: str) -> Tensor:
        """Dequantise one tensor to bfloat16."""
        if name not in self._tensors:
            raise CheckpointError(f"{self._path.name} has no tensor {name}; fetch the file again")
        raw = self._tensors[name]
        return torch.tensor(gguf.quants.dequantize(raw.data, raw.tensor_type), dtype=torch.bfloat16)


def convert(source: Path, target: Path, on_fraction: Callable[[float], None]) -> None:
    """Write config.json, generation_config.json, the tokenizer and model.safetensors of `source` into `target`."""
    model = LlamaGguf(source)
    config = glm_config(model)
    _write_json(target / "config.json", config)
    _write_json(
        target / "generation_config.json",
        {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    _write_json(target / "tokenizer.json", tokenizer_json(model))
    _write_json(target / "tokenizer_config.json", tokenizer_config(model))
    weights = target / "model.safetensors"
    save_file(_tensors(model, on_fraction), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # the library leaves it to its owner alone


def glm_config(model: LlamaGguf) -> dict[str, Any]:
    """Return the config.json that transformers 5 would write."""
    heads = int(model.value("llama.attention.head_count"))
    hidden = int(model.value("llama.embedding_length"))
    head_dim = hidden // heads
    return {
        "architectures": ["GlmForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": int(model.value("tokenizer.ggml.bos_token_id")),
        "dtype": "bfloat16",
        "eos_token_id": _eos_token_ids(model),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": int(model.value("llama.feed_forward_length")),
        "max_position_embeddings": int(model.value("llama.context_length")),
        "model_type": "glm",
        "num_attention_heads": heads,
        "num_hidden_layers": int(model.value("llama.block_count")),
        "num_key_value_heads": int(model.value("llama.attention.head_count_kv")),
        "pad_token_id": int(model.value("tokenizer.ggml.padding_token_id")),
        "rms_norm_eps": round(float(model.value("llama.attention.layer_norm_rms_epsilon")), 12),
        "rope_parameters": {
            "partial_rotary_factor": int(model.value("llama.rope.dimension_count")) / head_dim,
            "rope_theta": float(model.value("llama.rope.freq_base")),
            "rope_type": "default",
        },
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": int(model.value("llama.vocab_size")),
    }


def tokenizer_json(model: LlamaGguf) -> dict[str, Any]:
    """Return the byte-level BPE that GGUF calls `smollm`: digits stand alone, then GPT-2's own splitting."""
    if (pre := model.value("tokenizer.ggml.pre")) != "smollm":
        raise CheckpointError(f"the GGUF splits text as {pre!r} does; only 'smollm' can be converted")
    tokens = model.value("tokenizer.ggml.tokens")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    digits = {"type": "Digits", "individual_digits": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": tokens[id], **flags} for id in _control_ids(model)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in model.value("tokenizer.ggml.merges")],
        },
    }


def tokenizer_config(model: LlamaGguf) -> dict[str, Any]:
    """Return tokenizer_config.json with the model's own chat template."""
    tokens = model.value("tokenizer.ggml.tokens")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[model.value("tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[model.value("tokenizer.ggml.eos_token_id")],
        "pad_token": tokens[model.value("tokenizer.ggml.padding_token_id")],
        "unk_token": tokens[model.value("tokenizer.ggml.unknown_token_id")],
        "additional_special_tokens": [tokens[id] for id in _control_ids(model)],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(model.value("llama.context_length")),
        "chat_template": model.value("tokenizer.chat_template"),
    }


def weights_sha256(path: Path) -> str:
    """Hash names, shapes and bytes of a safetensors file, whatever order and header its writer chose."""
    digest = hashlib.sha256()
    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.view(torch.uint8).numpy())
    return digest.hexdigest()


def _tensors(model: LlamaGguf, on_fraction: Callable[[float], None]) -> dict[str, Tensor]:
    num_layers = int(model.value("llama.block_count"))
    tensors = {
        "model.embed_tokens.weight": model.tensor("token_embd.weight"),
        "model.norm.weight": model.tensor("output_norm.weight"),
    }
    for layer in range(num_layers):
        old, new = f"blk.{layer}", f"model.layers.{layer}"
        for theirs, ours in RENAMED.items():
            tensors[f"{new}.{ours}"] = model.tensor(f"{old}.{theirs}")
        gate_and_up = [model.tensor(f"{old}.ffn_{half}.weight") for half in ("gate", "up")]
        tensors[f"{new}.mlp.gate_up_proj.weight"] = torch.cat(gate_and_up)
        on_fraction((layer + 1) / num_layers)
    return tensors


def _control_ids(model: LlamaGguf) -> list[int]:
    kinds = model.value("tokenizer.ggml.token_type")
    return [id for id, kind in enumerate(kinds) if kind == CONTROL_TOKEN]


def _eos_token_ids(model: LlamaGguf) -> list[int]:
    """The end of a turn, and the end of a document where that is another token."""
    tokens = model.value("tokenizer.ggml.tokens")
    turn = int(model.value("tokenizer.ggml.eos_token_id"))
    document = [id for id in _control_ids(model) if tokens[id] == "<|endoftext|>"]
    return list(dict.fromkeys([turn, *document]))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
