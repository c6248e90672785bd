"""A model's parameters from a checkpoint's tensors, and to files. Knows a model only by its names and shards."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from glm_cluster.errors import ConfigError
from glm_cluster.model.checkpoints.checkpoint import Checkpoint
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.sharding import Shard

logger = logging.getLogger(__name__)

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Fillable(Protocol):
    """What is asked of a model. `prefix` is that of the decoder's tensors in its `state_dict`: none if it is one."""

    config: GlmConfig
    prefix: ClassVar[str]

    def shards(self) -> dict[str, Shard]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = ..., assign: bool = ...) -> Any: ...

    def tie_weights(self) -> None: ...


def fill(model: Fillable, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors, by the names they have in a whole checkpoint, in the place of the model's parameters."""
    named = {name if model.prefix else name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    tied = {name for name in model.state_dict() if name not in named and name == "lm_head.weight"}
    result = model.load_state_dict(named, strict=False, assign=True)
    assert set(result.missing_keys) == tied, "the names were compared with the checkpoint's"
    assert not result.unexpected_keys, "the names were compared with the checkpoint's"
    model.tie_weights()


def fill_or_make(model: Fillable, directory: Path, *, dtype: torch.dtype, device: torch.device) -> None:
    """Fill an unsharded model from a directory; a head that is not there is made anew, with a warning, as HF does."""
    checkpoint = Checkpoint.open(directory, model.config)
    wanted = model.shards()
    fresh = {name: wanted.pop(name) for name in checkpoint.absent(wanted) if not name.startswith("model.")}
    if fresh:
        logger.warning("%s has no %s: it is newly initialised; train it before use", directory, ", ".join(fresh))
    tensors = {name: t.to(device, dtype) for name, t in checkpoint.read(wanted)}
    for name, shard in fresh.items():
        made = torch.empty(shard.shape, dtype=dtype, device=device)
        tensors[name] = made.zero_() if name.endswith("bias") else made.normal_(0, model.config.initializer_range)
    fill(model, tensors)


def write_shards(directory: Path, groups: list[dict[str, Tensor]]) -> None:
    """One safetensors file a group, and an index where there are several, named as HF names them."""
    total = sum(t.numel() * t.element_size() for group in groups for t in group.values())
    count = sum(t.numel() for group in groups for t in group.values())
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        save_file(group, directory / file, metadata={"format": "pt"})
        (directory / file).chmod(0o644)  # the library leaves it to its owner alone
        weight_map |= dict.fromkeys(group, file)
    if len(groups) > 1:
        index = {"metadata": {"total_size": total, "total_parameters": count}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def groups(tensors: dict[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    """Tensors in order, as many together as `limit` bytes hold; a larger one stands alone."""
    group: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        more = tensor.numel() * tensor.element_size()
        if group and size + more > limit:
            yield group
            group, size = {}, 0
        group[name] = tensor
        size += more
    yield group


def num_bytes(size: int | str) -> int:
    """A size as HF writes it: a number of bytes, or a string like 5GB."""
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"(\d+)\s*([KMG]?I?B)", size.upper())
    if match is None:
        raise ConfigError(f"max_shard_size must be a number of bytes or a string like 5GB, not {size!r}")
    return int(match[1]) * _UNITS[match[2]]
