"""Tiny checkpoints as THUDM publishes them (`chatglm`), and THUDM's own maths once more, in plain tensor operations."""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

TINY: dict[str, Any] = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "ffn_hidden_size": 128,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 64,
    "kv_channels": 32,
    "layernorm_epsilon": 1.5625e-07,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_layers": 3,
    "rope_ratio": 500,
    "original_rope": True,
    "padded_vocab_size": 301,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 512,
    "use_cache": True,
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
    "eos_token_id": [1, 2],
    "pad_token_id": 0,
}
GENERATION = {"do_sample": True, "temperature": 0.8, "top_p": 0.8, "eos_token_id": [1, 2], "pad_token_id": 0}


def write_chatglm(directory: Path, *, seed: int = 1, num_files: int = 1, **changes: Any) -> Path:
    """Write config, generation config and random fused weights; in `num_files` files with an index if more than one."""
    config = {**TINY, **changes}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps(GENERATION))
    tensors = random_tensors(config, seed)
    if num_files == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    names = list(tensors)
    weight_map = {}
    for number in range(num_files):
        file = f"model-{number + 1:05}-of-{num_files:05}.safetensors"
        part = {name: tensors[name] for name in names[number::num_files]}  # a layer's tensors in different files
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def random_tensors(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by THUDM's name; none of them zero, so that a missing one shows."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, config["torch_dtype"])
    hidden, ffn, width = config["hidden_size"], config["ffn_hidden_size"], config["kv_channels"]
    q_rows = config["num_attention_heads"] * width
    rows = q_rows + 2 * num_groups(config) * width

    def draw(*shape: int, mean: float = 0.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.3 + mean).to(dtype)

    out = {
        "transformer.embedding.word_embeddings.weight": draw(config["padded_vocab_size"], hidden),
        "transformer.rotary_pos_emb.inv_freq": torch.ones(width // 4),
        "transformer.encoder.final_layernorm.weight": draw(hidden, mean=1.0),
    }
    if not config["tie_word_embeddings"]:
        out["transformer.output_layer.weight"] = draw(config["padded_vocab_size"], hidden)
    for index in range(config["num_layers"]):
        layer = f"transformer.encoder.layers.{index}."
        out[layer + "input_layernorm.weight"] = draw(hidden, mean=1.0)
        out[layer + "post_attention_layernorm.weight"] = draw(hidden, mean=1.0)
        out[layer + "self_attention.query_key_value.weight"] = draw(rows, hidden)
        if config["add_qkv_bias"]:
            out[layer + "self_attention.query_key_value.bias"] = draw(rows)
        out[layer + "self_attention.dense.weight"] = draw(hidden, q_rows)
        out[layer + "mlp.dense_h_to_4h.weight"] = draw(2 * ffn, hidden)
        out[layer + "mlp.dense_4h_to_h.weight"] = draw(hidden, ffn)
    return out


def num_groups(config: dict[str, Any]) -> int:
    """KV heads: as many as query heads unless they are shared."""
    return config["multi_query_group_num"] if config["multi_query_attention"] else config["num_attention_heads"]


def stored_tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint directory, by its stored name."""
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def thudm_forward(directory: Path, ids_T: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states after the final norm, and logits, of one sequence: written from THUDM's description, in fp32."""
    config = json.loads((directory / "config.json").read_text())
    w = {name.removeprefix("transformer."): t.float() for name, t in stored_tensors(directory).items()}
    x = w["embedding.word_embeddings.weight"][ids_T]
    for index in range(config["num_layers"]):
        at = f"encoder.layers.{index}."
        normed = _norm(x, w[at + "input_layernorm.weight"], config)
        fused = normed @ w[at + "self_attention.query_key_value.weight"].T
        if config["add_qkv_bias"]:
            fused = fused + w[at + "self_attention.query_key_value.bias"]
        x = x + _attend(fused, config) @ w[at + "self_attention.dense.weight"].T
        normed = _norm(x, w[at + "post_attention_layernorm.weight"], config)
        gate, up = (normed @ w[at + "mlp.dense_h_to_4h.weight"].T).split(config["ffn_hidden_size"], dim=-1)
        x = x + (F.silu(gate) * up) @ w[at + "mlp.dense_4h_to_h.weight"].T
    x = _norm(x, w["encoder.final_layernorm.weight"], config)
    tied = config["tie_word_embeddings"]
    return x, x @ w["embedding.word_embeddings.weight" if tied else "output_layer.weight"].T


def _norm(x: Tensor, weight: Tensor, config: dict[str, Any]) -> Tensor:
    return weight * (x / (x.square().mean(-1, keepdim=True) + config["layernorm_epsilon"]).sqrt())


def _attend(fused_TR: Tensor, config: dict[str, Any]) -> Tensor:
    length, heads, width = len(fused_TR), config["num_attention_heads"], config["kv_channels"]
    if config["multi_query_attention"]:
        groups = num_groups(config)
        q, k, v = fused_TR.split([heads * width, groups * width, groups * width], dim=-1)
        q = q.reshape(length, heads, width)
        k, v = (x.reshape(length, groups, width).repeat_interleave(heads // groups, dim=1) for x in (k, v))
    else:
        q, k, v = fused_TR.reshape(length, heads, 3 * width).split(width, dim=-1)
    q, k = _rotated(q, config), _rotated(k, config)
    scores = torch.einsum("thd,shd->hts", q, k) / width**0.5
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return torch.einsum("hts,shd->thd", weights, v).reshape(length, heads * width)


def _rotated(x_THD: Tensor, config: dict[str, Any]) -> Tensor:
    """Turn the pairs (0, 1), (2, 3), ... of the first half of each head as complex numbers."""
    rotary = config["kv_channels"] // 2
    steps = torch.arange(0, rotary, 2, dtype=torch.float64) / rotary
    angles = torch.arange(len(x_THD), dtype=torch.float64)[:, None] / (10000.0 * config["rope_ratio"]) ** steps
    pairs = torch.view_as_complex(x_THD[..., :rotary].double().reshape(*x_THD.shape[:2], -1, 2).contiguous())
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(-2)
    return torch.cat([turned.float(), x_THD[..., rotary:]], dim=-1)


def hf_names(directory: Path) -> dict[str, Tensor]:
    """The stored tensors under HF's names, split by hand: what the oracle is filled with."""
    config = json.loads((directory / "config.json").read_text())
    width, heads, groups = config["kv_channels"], config["num_attention_heads"], num_groups(config)
    plain = {
        "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "transformer.encoder.final_layernorm.weight": "model.norm.weight",
        "transformer.output_layer.weight": "lm_head.weight",
    }
    moved = (
        ("transformer.encoder.layers", "model.layers"),
        ("self_attention.dense", "self_attn.o_proj"),
        ("mlp.dense_h_to_4h", "mlp.gate_up_proj"),
        ("mlp.dense_4h_to_h", "mlp.down_proj"),
    )
    out = {}
    for name, tensor in stored_tensors(directory).items():
        new = plain.get(name, name)
        for old, current in moved:
            new = new.replace(old, current)
        if "query_key_value" not in name:
            out[new] = tensor
            continue
        if config["multi_query_attention"]:
            parts = tensor.split([heads * width, groups * width, groups * width])
        else:
            by_head = tensor.reshape(heads, 3, width, *tensor.shape[1:])
            parts = [by_head[:, place].reshape(heads * width, *tensor.shape[1:]) for place in range(3)]
        for letter, part in zip("qkv", parts, strict=True):
            out[new.replace("self_attention.query_key_value", f"self_attn.{letter}_proj")] = part.contiguous()
    out.pop("transformer.rotary_pos_emb.inv_freq")
    return out


def chatglm_oracle(directory: Path, dtype: str = "float32") -> Any:
    """HF's GlmForCausalLM on the hand-mapped weights."""
    from transformers import GlmConfig, GlmForCausalLM

    raw = json.loads((directory / "config.json").read_text())
    config = GlmConfig(
        vocab_size=raw["padded_vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["ffn_hidden_size"],
        num_hidden_layers=raw["num_layers"],
        num_attention_heads=raw["num_attention_heads"],
        num_key_value_heads=num_groups(raw),
        head_dim=raw["kv_channels"],
        max_position_embeddings=raw["seq_length"],
        rms_norm_eps=raw["layernorm_epsilon"],
        attention_bias=raw["add_qkv_bias"],
        tie_word_embeddings=raw["tie_word_embeddings"],
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0 * raw["rope_ratio"],
            "partial_rotary_factor": 0.5,
        },
        pad_token_id=raw["pad_token_id"],
        eos_token_id=raw["eos_token_id"],
    )
    model = GlmForCausalLM(config)
    found = model.load_state_dict(hf_names(directory), strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) <= ({"lm_head.weight"} if raw["tie_word_embeddings"] else set())
    model.tie_weights()
    to = getattr(torch, dtype)
    for parameter in model.parameters():  # not `.to`, which would cast the rotary buffer as well
        parameter.data = parameter.data.to(to)
    return model.eval()


def write_thudm_tokenizer(directory: Path, data: Path, template: str | None = None) -> Path:
    """GLM-4's own vocabulary as THUDM publishes it: tokenizer.model, and a config that asks for remote code."""
    from glm_cluster.text.alphabet import unspell

    packed = (data / "tokenizer" / "tokenizer.GLM-4-0414.json.gz").read_bytes()
    content = json.loads(gzip.decompress(packed))
    vocab: dict[str, int] = content["model"]["vocab"]
    tokens = map(unspell, sorted(vocab, key=vocab.__getitem__))
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    (directory / "tokenizer.model").write_bytes(b"".join(lines))
    flags = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    added = {str(token["id"]): {flag: token[flag] for flag in flags} for token in content["added_tokens"]}
    config = {
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLM4Tokenizer", None]},
        "tokenizer_class": "ChatGLM4Tokenizer",
        "added_tokens_decoder": added,
        "additional_special_tokens": [token["content"] for token in added.values()],
        "clean_up_tokenization_spaces": False,
        "do_lower_case": False,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 128000,
        "padding_side": "left",
        "remove_space": False,
    }
    if template is not None:
        config["chat_template"] = (data / "templates" / template).read_text(encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory
