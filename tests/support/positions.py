"""The rotary embeddings of Hugging Face's and ours, at the positions of the published long checkpoints."""

from typing import Any

import torch
from support.parity import factors, rope
from torch import Tensor
from transformers.models.glm.configuration_glm import GlmConfig as HfConfig
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding

from glm_cluster.model.config import GlmConfig
from glm_cluster.model.rope import RotaryEmbedding

HEAD = {"hidden_size": 256, "num_attention_heads": 2, "head_dim": 128}  # R is 64, as in GLM-4-9B
LONG: dict[str, dict[str, Any]] = {
    "glm-4-9b-chat, 128K": {"max_position_embeddings": 131072, "rope_theta": 5e6},
    "glm-4-9b-chat-1m": {"max_position_embeddings": 1048576, "rope_theta": 1e8},
    "glm-4-9b-0414, yarn to 128K": {
        "max_position_embeddings": 131072,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    },
    "yarn, original not said": {
        "max_position_embeddings": 131072,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
    },
    "dynamic, past its length": {
        "max_position_embeddings": 65536,
        "rope_parameters": rope("dynamic", factor=2.0),
    },
    "longrope": {
        "max_position_embeddings": 131072,
        "rope_parameters": rope(
            "longrope",
            5e6,
            short_factor=factors(32, 1.0),
            long_factor=factors(32, 3.0),
            original_max_position_embeddings=32768,
        ),
    },
    "llama3": {
        "max_position_embeddings": 131072,
        "rope_parameters": rope(
            "llama3",
            5e5,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
    },
}


class Both:
    """The two embeddings of one config. They remember lengths: ask both, in the same order."""

    def __init__(self, **keys: Any) -> None:
        self.theirs = GlmRotaryEmbedding(HfConfig(**keys))
        self.ours = RotaryEmbedding(GlmConfig(**keys))

    def check(self, positions_T: Tensor, dtype: torch.dtype = torch.float32) -> None:
        halves = self.theirs(torch.empty(0, dtype=dtype), positions_T[None])
        for ours, half in zip(self.ours(positions_T[None], dtype), halves, strict=True):
            theirs = half[..., : half.shape[-1] // 2].repeat_interleave(2, dim=-1)  # as HF's attention spreads them
            assert ours.dtype == theirs.dtype == dtype
            assert torch.equal(ours, theirs)


def last_position(name: str) -> int:
    """How far a config of `LONG` is asked: dynamic frequencies twice as far as they were trained."""
    return 131072 if "dynamic" in name else int(LONG[name]["max_position_embeddings"])


def reached(length: int) -> Tensor:
    """The first and last 2048 positions and every fifth between."""
    return torch.cat([torch.arange(2048), torch.arange(2048, length, 5), torch.arange(length - 2048, length)])
