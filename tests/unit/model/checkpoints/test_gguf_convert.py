"""A tiny llama GGUF becomes the `glm` checkpoint that computes the same."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glm_cluster.errors import CheckpointError
from glm_cluster.model.checkpoints.gguf_convert import LlamaGguf, convert, glm_config, weights_sha256

HIDDEN, LAYERS, HEADS, KV_HEADS, FEED_FORWARD = 32, 2, 4, 2, 64
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab"]
SHAPES = {
    "attn_norm": (HIDDEN,),
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN // 2, HIDDEN),
    "attn_v": (HIDDEN // 2, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_norm": (HIDDEN,),
    "ffn_gate": (FEED_FORWARD, HIDDEN),
    "ffn_up": (FEED_FORWARD, HIDDEN),
    "ffn_down": (HIDDEN, FEED_FORWARD),
}


def llama_tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {f"blk.{layer}.{name}.weight": shape for layer in range(LAYERS) for name, shape in SHAPES.items()}
    shapes |= {"token_embd.weight": (len(TOKENS), HIDDEN), "output_norm.weight": (HIDDEN,)}
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def write_gguf(path: Path, *, architecture: str = "llama", pre: str = "smollm", without: str = "") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")
    for name, tensor in llama_tensors().items():
        if name != without:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    target = tmp_path / "glm"
    target.mkdir()
    convert(write_gguf(tmp_path / "tiny.gguf"), target, lambda _: None)
    return target


def test_rows_are_kept_in_place_and_gate_comes_before_up(checkpoint: Path) -> None:
    ours, theirs = load_file(checkpoint / "model.safetensors"), llama_tensors()

    def given(name: str) -> torch.Tensor:
        return torch.from_numpy(theirs[name]).to(torch.bfloat16)

    assert len(ours) == 2 + 8 * LAYERS
    for layer in range(LAYERS):
        for kind in ("q", "k", "v"):
            assert torch.equal(
                ours[f"model.layers.{layer}.self_attn.{kind}_proj.weight"], given(f"blk.{layer}.attn_{kind}.weight")
            )
        gate, up = ours[f"model.layers.{layer}.mlp.gate_up_proj.weight"].split(FEED_FORWARD)
        assert torch.equal(gate, given(f"blk.{layer}.ffn_gate.weight"))
        assert torch.equal(up, given(f"blk.{layer}.ffn_up.weight"))
    assert torch.equal(ours["model.embed_tokens.weight"], given("token_embd.weight"))


def test_transformers_finds_every_weight(checkpoint: Path) -> None:
    import transformers

    _, report = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]


def test_config_carries_the_metadata_over(tmp_path: Path) -> None:
    config = glm_config(LlamaGguf(write_gguf(tmp_path / "tiny.gguf")))
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 2, 8)
    assert config["rope_parameters"] == {"partial_rotary_factor": 1.0, "rope_theta": 5000.0, "rope_type": "default"}
    assert config["eos_token_id"] == [2, 0]  # the end of a turn, then the end of a document
    assert config["rms_norm_eps"] == 1e-5  # stored as float32 in the GGUF


def test_control_tokens_are_special_in_the_tokenizer(checkpoint: Path) -> None:
    content = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    assert [(token["id"], token["content"]) for token in content["added_tokens"]] == list(enumerate(TOKENS[:3]))
    config = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (config["eos_token"], config["chat_template"]) == ("<|im_end|>", "{{ messages }}")


def test_progress_ends_at_one(tmp_path: Path) -> None:
    fractions: list[float] = []
    convert(write_gguf(tmp_path / "tiny.gguf"), tmp_path, fractions.append)
    assert fractions == [0.5, 1.0]


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", without="blk.1.ffn_up.weight")
    with pytest.raises(CheckpointError, match=r"tiny\.gguf has no tensor blk\.1\.ffn_up\.weight"):
        convert(file, tmp_path, lambda _: None)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'qwen2' model"):
        LlamaGguf(write_gguf(tmp_path / "tiny.gguf", architecture="qwen2"))


def test_another_way_of_splitting_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'llama-bpe'"):
        convert(write_gguf(tmp_path / "tiny.gguf", pre="llama-bpe"), tmp_path, lambda _: None)


def test_the_hash_sees_names_shapes_and_values_but_not_the_writers_order(tmp_path: Path) -> None:
    def hashed(tensors: dict[str, torch.Tensor]) -> str:
        save_file(tensors, tmp_path / "x.safetensors")
        return weights_sha256(tmp_path / "x.safetensors")

    a, b = torch.arange(4, dtype=torch.bfloat16), torch.ones(2, 2, dtype=torch.bfloat16)
    assert hashed({"a": a, "b": b}) == hashed({"b": b, "a": a})
    others = [{"a": a, "c": b}, {"a": a, "b": b + 1}, {"a": a.view(2, 2), "b": b}, {"a": b.view(4), "b": a.view(2, 2)}]
    assert hashed({"a": a, "b": b}) not in {hashed(other) for other in others}
