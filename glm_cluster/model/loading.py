"""From a checkpoint directory to a model ready to run: the strict way of the engine, and HF's way.

Knows which class serves which task. Knows nothing of how files are laid out: `checkpoint` does.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from glm_cluster.errors import ConfigError
from glm_cluster.model.checkpoint import Checkpoint, Progress
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.glm import GlmForCausalLM, GlmModel
from glm_cluster.model.heads import GlmForSequenceClassification, GlmForTokenClassification
from glm_cluster.model.pretrained import PretrainedModel
from glm_cluster.model.ranks import Ranks
from glm_cluster.records import Task

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODEL_OF: Mapping[Task, type[PretrainedModel]] = {
    "generate": GlmForCausalLM,
    "classify": GlmForSequenceClassification,
    "classify-tokens": GlmForTokenClassification,
    "embed": GlmModel,
}

M = TypeVar("M", bound=PretrainedModel)


def load_model(
    directory: Path,
    *,
    ranks: Ranks,
    dtype: str = "auto",
    task: Task = "generate",
    on_progress: Progress | None = None,
) -> Any:
    """Build this rank's model of a task from a checkpoint directory, on the ranks' device, ready for inference.

    `dtype` "auto" keeps what config.json says (fp16 weights become bf16: fp16 overflows in GLM). Every tensor of the
    task's model must be there: a classifier is not made from a language model's checkpoint.
    """
    config = GlmConfig.from_directory(directory)
    with torch.device("meta"):
        model = MODEL_OF[task](config, ranks)
    checkpoint = Checkpoint.open(directory, config)
    to = resolve_dtype(config, dtype)
    _fill(model, {name: t.to(ranks.device, to) for name, t in checkpoint.read(model.shards(), on_progress)})
    return model.eval().requires_grad_(False)


def resolve_dtype(config: GlmConfig, dtype: str) -> torch.dtype:
    """The dtype an engine computes in."""
    if dtype != "auto":
        return DTYPES[dtype]
    return torch.bfloat16 if config.dtype == "float16" else DTYPES.get(config.dtype or "float32", torch.bfloat16)


def load_pretrained(
    kind: type[M], directory: Path, config: GlmConfig, *, dtype: torch.dtype, device: torch.device
) -> M:
    """HF's `from_pretrained`: as above, but a head that the checkpoint has not is made anew, with a warning."""
    checkpoint = Checkpoint.open(directory, config)
    with torch.device("meta"):
        model = kind(config)
    wanted = model.shards()
    fresh = {name: wanted.pop(name) for name in checkpoint.absent(wanted) if not name.startswith("model.")}
    if fresh:
        logger.warning("%s has no %s: it is newly initialised; train it before use", directory, ", ".join(fresh))
    tensors = {name: t.to(device, dtype) for name, t in checkpoint.read(wanted)}
    std = config.initializer_range
    for name, shard in fresh.items():
        made = torch.empty(shard.shape, dtype=dtype, device=device)
        tensors[name] = made.zero_() if name.endswith("bias") else made.normal_(0, std)
    _fill(model, tensors)
    return model.eval()


def _fill(model: PretrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors, by HF's names, in the place of the model's parameters."""
    named = {name if model.prefix else name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    tied = {name for name in model.state_dict() if name not in named and name == "lm_head.weight"}
    result = model.load_state_dict(named, strict=False, assign=True)
    assert set(result.missing_keys) == tied, "the names were compared with the checkpoint's"
    assert not result.unexpected_keys, "the names were compared with the checkpoint's"
    model.tie_weights()


def choose_device(device_map: object, num_bytes: int) -> torch.device:
    """Where `device_map` puts a whole model: a named device, or for "auto" CUDA if there is room, else the CPU."""
    if isinstance(device_map, dict):
        if set(device_map) != {""}:
            raise ConfigError('device_map places the whole model: give "auto", a device, or {"": device}')
        device_map = device_map[""]
    if device_map is None:
        return torch.device("cpu")
    if device_map != "auto":
        return torch.device(device_map)  # type: ignore[call-overload, no-any-return]
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > num_bytes:
        return torch.device("cuda")
    return torch.device("cpu")
