"""Safetensors on disk, by HF's names whatever layout they are stored in. Opens nothing but safetensors; no pickle ever.

A checkpoint is refused before a weight is used when a tensor is missing, unexpected, stored twice, of the wrong shape
or dtype, or its file is missing, truncated or outside the directory; the error names the file and the tensor. Imports
torch to read weights only: whoever opens and checks stays light.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from safetensors import SafetensorError, safe_open

from glm_cluster.errors import CheckpointError
from glm_cluster.model.checkpoints.chatglm import IGNORED, ChatglmLayout
from glm_cluster.model.config import CONFIG_FILE, GlmConfig, read_json
from glm_cluster.model.sharding import Shard

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"
ROPE_BUFFER = ".rotary_emb.inv_freq"  # of exports by older versions of HF; made anew from the config
HEADER_LIMIT = 100_000_000  # bytes; the library's own
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # as config.json spells them
# Of models with another head, or of a tied head stored all the same: no fault of the checkpoint.
_HEADS = ("lm_head.weight", "score.weight", "score.bias", "transformer.output_layer.weight")

Progress = Callable[[str, float], None]
Place = tuple[str, Shard]
"""A stored tensor's name, and the part of it that is meant."""


class Layout(Protocol):
    """Where files keep the tensors that HF names."""

    def locate(self, name: str, shard: Shard) -> Place: ...


@dataclass(frozen=True, slots=True)
class HfLayout:
    """HF's own files. A bare `GlmModel` is saved without the prefix that it has inside the others."""

    prefixed: bool

    def locate(self, name: str, shard: Shard) -> Place:
        """The stored name, and the shard as it is."""
        return (name if self.prefixed else name.removeprefix("model.")), shard


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One directory: which file holds which stored tensor, and how stored names translate."""

    source: Path  # what lists the names: the index, or the single file
    files: Mapping[str, Path]
    layout: Layout
    dtype: str | None  # of the stored weights, as config.json has it

    @classmethod
    def open(cls, directory: Path, config: GlmConfig) -> Self:
        """Read names, not weights."""
        source = weight_source(directory)
        files = weight_files(source)
        raw = read_json(directory / CONFIG_FILE)
        layout: Layout = HfLayout(prefixed=any(name.startswith("model.") for name in files))
        if raw.get("model_type") == "chatglm":
            shared = bool(raw.get("multi_query_attention", False))
            layout = ChatglmLayout(config, fused_by_head=not shared)
        return cls(source, files, layout, config.dtype)

    def with_stored_dtype(self, config: GlmConfig) -> GlmConfig:
        """The config, which where it names no dtype gets that of the first stored tensor with one, as in HF."""
        if config.dtype is not None:
            return config
        first = min(self.files.values(), default=self.source)
        with _opened(first, "numpy") as file:
            stored = (file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118, a file is no mapping
            return config.replace(dtype=next((_STORED[dtype] for dtype in stored if dtype in _STORED), None))

    def absent(self, wanted: Mapping[str, Shard]) -> list[str]:
        """Those of the wanted tensors, by HF's name, that are not stored."""
        return sorted(name for name, shard in wanted.items() if self.layout.locate(name, shard)[0] not in self.files)

    def check(self, wanted: Mapping[str, Shard]) -> Mapping[str, int]:
        """Refuse whatever `read` would, from the files' headers alone; how many tensors are stored in each dtype."""
        dtypes: Counter[str] = Counter()
        for path, places in self._places(wanted).items():
            with _opened(path, "numpy") as file:
                self._check_file(path, file, places)
                dtypes.update(file.get_slice(stored).get_dtype() for stored, _ in places.values())
        return dtypes

    def read(self, wanted: Mapping[str, Shard], on_progress: Progress | None = None) -> "Iterator[tuple[str, Tensor]]":
        """Yield each wanted tensor's part under HF's name, file by file, each file checked before its first."""
        done = 0
        for path, places in self._places(wanted).items():
            with _opened(path, "pt") as file:
                self._check_file(path, file, places)
                for name, (stored, shard) in places.items():
                    yield name, _cut(file.get_slice(stored), shard)
                    done += 1
                    if on_progress is not None:
                        on_progress("loading weights", done / len(wanted))

    def _places(self, wanted: Mapping[str, Shard]) -> dict[Path, dict[str, Place]]:
        """Group by file, in order, where the wanted tensors are stored. Refuse names that do not fit the model."""
        if missing := self.absent(wanted):
            raise CheckpointError(f"{self.source}: tensor {missing[0]!r} is missing ({len(missing)} missing in all)")
        located = {name: self.layout.locate(name, shard) for name, shard in wanted.items()}
        self._check_none_is_left(place[0] for place in located.values())
        grouped: dict[Path, dict[str, Place]] = {path: {} for path in sorted(set(self.files.values()))}
        for name, place in located.items():
            grouped[self.files[place[0]]][name] = place
        return grouped

    def _check_none_is_left(self, used: Iterable[str]) -> None:
        left = self.files.keys() - set(used) - {*_HEADS, *IGNORED}
        if unexpected := sorted(name for name in left if not name.endswith(ROPE_BUFFER)):
            name = unexpected[0]
            raise CheckpointError(
                f"{self.files[name]}: tensor {name!r} has no place in this model ({len(unexpected)} such)"
            )

    def _check_file(self, path: Path, file: Any, places: Mapping[str, Place]) -> None:
        """Refuse a file whose header is not what index and config say."""
        present = set(file.keys())
        if elsewhere := sorted(name for name in present if self.files.get(name, path) != path):
            raise CheckpointError(
                f"{path}: tensor {elsewhere[0]!r} is stored here, while {self.source.name} places it in "
                f"{self.files[elsewhere[0]].name}; fetch both files again"
            )
        for stored, shard in places.values():
            if stored not in present:
                raise CheckpointError(f"{path}: tensor {stored!r} is missing, though the index says it is here")
            view = file.get_slice(stored)
            self._check_tensor(path, stored, view.get_shape(), view.get_dtype(), shard)

    def _check_tensor(self, path: Path, name: str, shape: list[int], dtype: str, shard: Shard) -> None:
        at = f"{path}: tensor {name!r}"
        if tuple(shape) != shard.full:
            raise CheckpointError(f"{at} has shape {list(shape)}, the config wants {list(shard.full)}")
        if dtype not in _STORED:
            raise CheckpointError(f"{at} has dtype {dtype}; one of {', '.join(_STORED)} is needed")
        # The same bytes mean other numbers in the other one; fp32 beside either cannot be mistaken.
        if {_STORED[dtype], self.dtype} == {"bfloat16", "float16"}:
            raise CheckpointError(f"{at} has dtype {dtype}, {CONFIG_FILE} says {self.dtype}; correct which is wrong")


def weight_source(directory: Path) -> Path:
    """What lists the names of the tensors: the single file, else the index; HF too reads the former of both."""
    for path in (directory / SINGLE_FILE, directory / INDEX_FILE):
        if _is_file(path):
            return path
    raise CheckpointError(f"{directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}; only safetensors are read")


def weight_files(source: Path) -> dict[str, Path]:
    """Map each stored tensor's name to the file that holds it, from the index or the single file."""
    if source.name == INDEX_FILE:
        return {name: _beside(source, file, name) for name, file in _weight_map(source).items()}
    with _opened(source, "numpy") as file:
        return dict.fromkeys(file.keys(), source)


def _weight_map(index: Path) -> Mapping[str, str]:
    weight_map = read_json(index).get("weight_map")
    if isinstance(weight_map, dict) and all(isinstance(file, str) for file in weight_map.values()):
        return weight_map
    raise CheckpointError(f"{index}: `weight_map` must map tensor names to file names")


def _beside(index: Path, file: str, tensor: str) -> Path:
    """The file that the index names: no path, though the file may be a link to anywhere, as in hub caches."""
    if Path(file).name != file:
        raise CheckpointError(f"{index} names {file!r}, which is outside {index.parent}")
    if not file.endswith(SUFFIX):
        raise CheckpointError(f"{index} names {file!r}; only *{SUFFIX} are read, since other formats can run code")
    if not _is_file(index.with_name(file)):
        raise CheckpointError(
            f"{index} names {file!r}, which does not exist in {index.parent}; tensor {tensor!r} should be in it"
        )
    return index.with_name(file)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:  # a name too long, a directory that may not be searched
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


@contextmanager
def _opened(path: Path, framework: Literal["numpy", "pt"]) -> Iterator[Any]:
    """The library's view of a file, which has checked its header. "numpy" shows names and shapes without torch."""
    try:
        path.open("rb").close()  # the library says of a file it may not read that it does not exist
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        cut = _first_cut(path)
        where = "" if cut is None else f"; it ends before tensor {cut!r} does, so fetch it again"
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}{where}") from error


def _first_cut(path: Path) -> str | None:
    """The first tensor that the file is too short for, by its header; None where the header itself is no help."""
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            data_bytes = path.stat().st_size - 8 - header_bytes
            if data_bytes < 0 or header_bytes > HEADER_LIMIT:
                return None
            header: dict[str, Any] = json.loads(file.read(header_bytes))
        ends = {name: entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
        return min((name for name, end in ends.items() if end > data_bytes), key=ends.__getitem__, default=None)
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return None


def _cut(stored: Any, shard: Shard) -> "Tensor":
    """Read the ranges of one tensor, joined, with zero rows appended up to the shard's length."""
    import torch

    lead = (slice(None),) * shard.dim
    parts: list[Tensor] = [stored[(*lead, slice(start, stop))] for start, stop in shard.ranges]
    have = sum(stop - start for start, stop in shard.ranges)
    if have < shard.length:
        pad = (*shard.shape[: shard.dim], shard.length - have, *shard.shape[shard.dim + 1 :])
        parts.append(torch.zeros(pad, dtype=parts[0].dtype))
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim=shard.dim)
