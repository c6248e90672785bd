"""Safetensors on disk, by HF's names whatever layout they are stored in. Opens nothing but safetensors; no pickle ever.

A checkpoint is refused before a weight is used when a tensor is missing, unexpected, of the wrong shape or dtype, or
its file is missing, truncated or outside the directory; the error names the file and the tensor.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from glm_cluster.errors import CheckpointError
from glm_cluster.model.chatglm import IGNORED, ChatglmLayout
from glm_cluster.model.config import CONFIG_FILE, GlmConfig, read_json
from glm_cluster.model.sharding import Shard

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# Of models with another head, or of a tied head stored all the same: no fault of the checkpoint.
_HEADS = ("lm_head.weight", "score.weight", "score.bias", "transformer.output_layer.weight")

Progress = Callable[[str, float], None]
SafeSlice: TypeAlias = Any  # safetensors has no types: `get_shape`, `get_dtype` and indexing


class Layout(Protocol):
    """Where files keep the tensors that HF names."""

    def locate(self, name: str, shard: Shard) -> tuple[str, Shard]: ...


@dataclass(frozen=True, slots=True)
class HfLayout:
    """HF's own files. A bare `GlmModel` is saved without the prefix that it has inside the others."""

    prefixed: bool

    def locate(self, name: str, shard: Shard) -> tuple[str, Shard]:
        """The stored name, and the shard as it is."""
        return (name if self.prefixed else name.removeprefix("model.")), shard


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One directory: which file holds which stored tensor, and how stored names translate."""

    directory: Path
    files: Mapping[str, Path]
    layout: Layout

    @classmethod
    def open(cls, directory: Path, config: GlmConfig) -> Self:
        """Read names, not weights."""
        files = weight_files(directory)
        raw = read_json(directory / CONFIG_FILE)
        if raw.get("model_type") == "chatglm":
            shared = bool(raw.get("multi_query_attention", False))
            return cls(directory, files, ChatglmLayout(config, fused_by_head=not shared))
        return cls(directory, files, HfLayout(prefixed=any(name.startswith("model.") for name in files)))

    def absent(self, wanted: Mapping[str, Shard]) -> list[str]:
        """Those of the wanted tensors, by HF's name, that are not stored."""
        return sorted(name for name, shard in wanted.items() if self.layout.locate(name, shard)[0] not in self.files)

    def read(self, wanted: Mapping[str, Shard], on_progress: Progress | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield each wanted tensor's part under HF's name, file by file, having checked the names of all."""
        for done, (name, stored, shard) in enumerate(self._stored(wanted), 1):
            yield name, _cut(stored, shard)
            if on_progress is not None:
                on_progress("loading weights", done / len(wanted))

    def check(self, wanted: Mapping[str, Shard]) -> Mapping[str, int]:
        """Refuse what `read` would refuse, without reading a weight; how many tensors are stored in each dtype."""
        return Counter(stored.get_dtype() for _, stored, _ in self._stored(wanted))

    def _stored(self, wanted: Mapping[str, Shard]) -> Iterator[tuple[str, SafeSlice, Shard]]:
        """Each wanted tensor as it is stored, file by file, and what is wanted of it; the names of all are checked."""
        self._check_names(wanted)
        located = {name: self.layout.locate(name, shard) for name, shard in wanted.items()}
        for path in sorted({self.files[stored] for stored, _ in located.values()}):
            yield from _open_file(path, {n: place for n, place in located.items() if self.files[place[0]] == path})

    def _check_names(self, wanted: Mapping[str, Shard]) -> None:
        if missing := self.absent(wanted):
            raise CheckpointError(f"{self.directory}: tensor {missing[0]!r} is missing ({len(missing)} missing in all)")
        known = {self.layout.locate(name, shard)[0] for name, shard in wanted.items()}
        if unexpected := sorted(self.files.keys() - known - {*_HEADS, *IGNORED}):
            name = unexpected[0]
            raise CheckpointError(
                f"{self.files[name]}: tensor {name!r} has no place in this model ({len(unexpected)} such)"
            )


def weight_files(directory: Path) -> dict[str, Path]:
    """Map each stored tensor's name to the file that holds it, from the index or the single file."""
    index = directory / INDEX_FILE
    if not index.is_file():
        single = directory / SINGLE_FILE
        if not single.is_file():
            raise CheckpointError(
                f"{directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}; only safetensors are read"
            )
        return dict.fromkeys(_names_in(single), single)
    return {name: _inside(directory, file, index) for name, file in _weight_map(index).items()}


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if all(isinstance(k, str) and isinstance(v, str) for k, v in weight_map.items()):
            return weight_map  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a safetensors index: {error}") from error
    raise CheckpointError(f"{index}: `weight_map` must map tensor names to file names")


def _inside(directory: Path, file: str, index: Path) -> Path:
    if Path(file).name != file:
        raise CheckpointError(f"{index} names {file!r}, which is outside {directory}")
    path = directory / file
    if not path.is_file():
        raise CheckpointError(f"{index} names {file!r}, which does not exist in {directory}")
    return path


def _names_in(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def _open_file(path: Path, wanted: Mapping[str, tuple[str, Shard]]) -> Iterator[tuple[str, SafeSlice, Shard]]:
    try:
        with safe_open(path, framework="pt") as file:
            present = set(file.keys())
            for name, (stored_name, shard) in wanted.items():
                if stored_name not in present:
                    raise CheckpointError(
                        f"{path}: tensor {stored_name!r} is missing, though the index says it is here"
                    )
                stored = file.get_slice(stored_name)
                _check_tensor(path, stored_name, stored.get_shape(), stored.get_dtype(), shard)
                yield name, stored, shard
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def _check_tensor(path: Path, name: str, shape: list[int], dtype: str, shard: Shard) -> None:
    if tuple(shape) != shard.full:
        raise CheckpointError(f"{path}: tensor {name!r} has shape {list(shape)}, the config wants {list(shard.full)}")
    if dtype not in _STORED:
        raise CheckpointError(f"{path}: tensor {name!r} has dtype {dtype}; one of {', '.join(_STORED)} is needed")


def _cut(stored: SafeSlice, shard: Shard) -> Tensor:
    """Read the ranges of one tensor, joined, with zero rows appended up to the shard's length."""
    lead = (slice(None),) * shard.dim
    parts: list[Tensor] = [stored[(*lead, slice(start, stop))] for start, stop in shard.ranges if stop > start]
    have = sum(stop - start for start, stop in shard.ranges)
    if have < shard.length:
        pad = (*shard.shape[: shard.dim], shard.length - have, *shard.shape[shard.dim + 1 :])
        parts.append(torch.zeros(pad, dtype=parts[0].dtype if parts else _STORED[stored.get_dtype()]))
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim=shard.dim)
