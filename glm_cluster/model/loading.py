"""From a checkpoint directory to a model ready to run: the strict way of the engine, and HF's way.

Knows which class serves which task. Knows nothing of how files are laid out: `checkpoint` does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from glm_cluster.model.checkpoints.checkpoint import Checkpoint, Progress
from glm_cluster.model.checkpoints.weights import fill
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.glm import GlmForCausalLM, GlmModel
from glm_cluster.model.heads import GlmForSequenceClassification, GlmForTokenClassification
from glm_cluster.model.pretrained import PretrainedModel
from glm_cluster.model.ranks import Ranks
from glm_cluster.records import Task

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODEL_OF: Mapping[Task, type[PretrainedModel]] = {
    "generate": GlmForCausalLM,
    "classify": GlmForSequenceClassification,
    "classify-tokens": GlmForTokenClassification,
    "embed": GlmModel,
}


def load_model(
    directory: Path,
    *,
    ranks: Ranks,
    dtype: str = "auto",
    task: Task = "generate",
    on_progress: Progress | None = None,
) -> Any:
    """Build this rank's model of a task from a checkpoint directory, on the ranks' device, ready for inference.

    `dtype` "auto" keeps what config.json says, or the files where it says nothing (fp16 weights become bf16: fp16
    overflows in GLM). Every tensor of the task's model must be there: a classifier is not made from a language model's
    checkpoint.
    """
    config = GlmConfig.from_directory(directory)
    with torch.device("meta"):
        model = MODEL_OF[task](config, ranks)
    checkpoint = Checkpoint.open(directory, config)
    to = resolve_dtype(checkpoint.with_stored_dtype(config), dtype)
    fill(model, {name: t.to(ranks.device, to) for name, t in checkpoint.read(model.shards(), on_progress)})
    return model.eval().requires_grad_(False)


def resolve_dtype(config: GlmConfig, dtype: str) -> torch.dtype:
    """The dtype an engine computes in. A config without one means float32: see `Checkpoint.with_stored_dtype`."""
    if dtype != "auto":
        return DTYPES[dtype]
    return torch.bfloat16 if config.dtype == "float16" else DTYPES.get(config.dtype or "float32", torch.float32)
