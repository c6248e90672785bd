"""Tiny random GLM checkpoints, written by transformers: the oracle's own files."""

import json
from pathlib import Path
from typing import Any

from glm_cluster.records import Task

TINY: dict[str, Any] = {
    "vocab_size": 301,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": [1],
    "initializer_range": 0.3,  # large, so that greedy gaps are wide and a wrong rank or pairing shows
}


CLASSES: dict[Task, str] = {
    "generate": "GlmForCausalLM",
    "classify": "GlmForSequenceClassification",
    "classify-tokens": "GlmForTokenClassification",
    "embed": "GlmModel",
}


def write_checkpoint(
    directory: Path,
    *,
    task: Task = "generate",
    seed: int = 1,
    max_shard_size: str = "50GB",
    dtype: str = "float32",
    **changes: Any,
) -> Path:
    """Save a random HF model (biases random too), its weights in `dtype`, and return its directory."""
    import torch
    import transformers

    torch.manual_seed(seed)
    family = "Glm4" if changes.pop("model_type", "glm") == "glm4" else "Glm"
    config = getattr(transformers, f"{family}Config")(**{**TINY, **changes})
    model = getattr(transformers, CLASSES[task].replace("Glm", family))(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=max_shard_size)
    return directory


UNUSED_IDS = ((256, 300),)  # of a vocabulary of 301, by the tokenizer below


def write_tokenizer(directory: Path) -> Path:
    """Add a tokenizer of the 256 bytes with <|endoftext|> as 300, and a chat template; return the directory."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 300, "content": "<|endoftext|>", **flags}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": byte_vocabulary(), "merges": []},
    }
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return directory


def byte_vocabulary() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for letters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def oracle(directory: Path, dtype: str = "float32", *, task: Task = "generate") -> Any:
    """HF's model on a checkpoint. Loaded by dtype: `.to(bfloat16)` would cast its rotary buffer as well."""
    import torch
    import transformers

    return getattr(transformers, CLASSES[task]).from_pretrained(directory, dtype=getattr(torch, dtype)).eval()


def oracle_greedy(model: Any, prompt: tuple[int, ...], max_new_tokens: int, **options: Any) -> tuple[int, ...]:
    """HF `generate`, greedy, without the prompt."""
    import torch

    ids = torch.tensor([prompt])
    seen = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=seen, max_new_tokens=max_new_tokens, do_sample=False, **options)
    return tuple(out[0, len(prompt) :].tolist())


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file in place; None removes one."""
    raw = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
