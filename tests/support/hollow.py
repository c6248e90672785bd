"""A checkpoint directory complete in everything but sense: zero weights and a tokenizer of single bytes. No torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from glm_cluster.model.config import GlmConfig
from glm_cluster.model.sharding import Sharding
from glm_cluster.records import Task
from glm_cluster.text.alphabet import BYTE_OF

HOLLOW: dict[str, Any] = {
    "model_type": "glm",
    "vocab_size": 264,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 256,
    "eos_token_id": [256, 257],
    "dtype": "float32",
}


def write_hollow(directory: Path, *, task: Task = "generate", **changes: Any) -> Path:
    """Write config.json, model.safetensors with the tensors of a task, and tokenizer.json; return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    raw = {**HOLLOW, **changes}
    (directory / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    shards = Sharding(GlmConfig.from_mapping(raw), 0, 1).of_task(task)
    zeros = {name: np.zeros(shard.full, dtype=np.float32) for name, shard in shards.items()}
    save_file(zeros, directory / "model.safetensors")
    (directory / "tokenizer.json").write_text(json.dumps(byte_tokenizer()), encoding="utf-8")
    return directory


def byte_tokenizer(num_controls: int = 4) -> dict[str, Any]:
    """The content of a tokenizer.json of the 256 bytes, and control tokens from id 256 on."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 256 + n, "content": f"<|{n}|>", **flags} for n in range(num_controls)],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": dict(BYTE_OF), "merges": []},
    }
