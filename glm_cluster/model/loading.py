"""From a checkpoint directory to a model ready to run: the strict way of the engine, and HF's way.

Knows which class serves which task. Knows nothing of how files are laid out: `checkpoint` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glm_cluster.model.checkpoints.checkpoint import Checkpoint, ReadProgress
from glm_cluster.model.checkpoints.weights import OnModule, fill
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


@dataclass(frozen=True, slots=True)
class Opened:
    """A model without weights, and the checkpoint that has them."""

    model: Any
    dtype: torch.dtype  # that it will have
    checkpoint: Checkpoint

    def fill(self, on_read: ReadProgress | None = None, on_module: OnModule | None = None) -> Any:
        """Read this rank's weights; the model, ready for inference.

        At no time is there more than one tensor beside what the model keeps: `on_module` (see `weights.fill`) may turn
        each module into another form as soon as its weights are there.
        """
        device = self.model.ranks.device
        fill(self.model, self.checkpoint.read(self.model.shards(), on_read, dtype=self.dtype, device=device), on_module)
        return self.model


def open_model(directory: Path, *, ranks: Ranks, dtype: str = "auto", task: Task = "generate") -> Opened:
    """This rank's model of a task and the checkpoint in a directory.

    `dtype` "auto" keeps what config.json says, or the files where it says nothing (fp16 weights become bf16: fp16
    overflows in GLM). Every tensor of the task's model must be there: a classifier is not made from a language model's
    checkpoint.
    """
    config = GlmConfig.from_directory(directory)
    with torch.device("meta"):
        model = MODEL_OF[task](config, ranks).eval().requires_grad_(False)
    checkpoint = Checkpoint.open(directory, config)
    return Opened(model, resolve_dtype(checkpoint.with_stored_dtype(config), dtype), checkpoint)


def load_model(
    directory: Path,
    *,
    ranks: Ranks,
    dtype: str = "auto",
    task: Task = "generate",
    on_read: ReadProgress | None = None,
    on_module: OnModule | None = None,
) -> Any:
    """Build this rank's model from a checkpoint directory, on the ranks' device: `open_model`, then `Opened.fill`."""
    return open_model(directory, ranks=ranks, dtype=dtype, task=task).fill(on_read, on_module)


def resolve_dtype(config: GlmConfig, dtype: str) -> torch.dtype:
    """The dtype an engine computes in. A config without one means float32: see `Checkpoint.with_stored_dtype`."""
    if dtype != "auto":
        return DTYPES[dtype]
    return torch.bfloat16 if config.dtype == "float16" else DTYPES.get(config.dtype or "float32", torch.float32)
