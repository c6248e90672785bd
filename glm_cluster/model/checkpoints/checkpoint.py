"""Safetensors on disk, by HF's names whatever layout they are stored in. Opens nothing but safetensors; no pickle ever.

A checkpoint is refused before a weight is used when a tensor is missing, unexpected, stored twice, of the wrong shape
or dtype, or its file is missing, truncated or outside the directory; the error names the file and the tensor. Imports
torch to read weights only: whoever opens and checks stays light.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from glm_cluster.errors import CheckpointError
from glm_cluster.model.checkpoints.chatglm import IGNORED, ChatglmLayout
from glm_cluster.model.checkpoints.tensor_file import TORCH_NAMES, Entry, TensorFile, read_header
from glm_cluster.model.config import CONFIG_FILE, GlmConfig, read_json
from glm_cluster.model.sharding import Shard

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SUFFIX = ".safetensors"
ROPE_BUFFER = ".rotary_emb.inv_freq"  # of exports by older versions of HF; made anew from the config
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Of models with another head, or of a tied head stored all the same: no fault of the checkpoint.
_HEADS = ("lm_head.weight", "score.weight", "score.bias", "transformer.output_layer.weight")

ReadProgress = Callable[[int, int], None]
"""Bytes of weights read, and how many there are to read."""
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
        header = read_header(min(self.files.values(), default=self.source))
        stored = (entry.dtype for entry in header.values())
        return config.replace(dtype=next((TORCH_NAMES[dtype] for dtype in stored if dtype in TORCH_NAMES), None))

    def absent(self, wanted: Mapping[str, Shard]) -> list[str]:
        """Those of the wanted tensors, by HF's name, that are not stored."""
        return sorted(name for name, shard in wanted.items() if self.layout.locate(name, shard)[0] not in self.files)

    def check(self, wanted: Mapping[str, Shard]) -> Mapping[str, int]:
        """Refuse whatever `read` would, from the files' headers alone; how many tensors are stored in each dtype."""
        places = self._places(wanted)
        headers = self._headers(places)
        return Counter(headers[path][stored].dtype for path in places for stored, _ in places[path].values())

    def read(
        self,
        wanted: Mapping[str, Shard],
        on_read: ReadProgress | None = None,
        *,
        dtype: "torch.dtype | None" = None,
        device: "torch.device | str" = "cpu",
    ) -> "Iterator[tuple[str, Tensor]]":
        """Yield each wanted tensor's part under HF's name, file by file, once every header is found right.

        Each is the caller's own, in `dtype` (None: the stored one) on `device`; no other is kept here.
        """
        places = self._places(wanted)
        headers = self._headers(places)
        total = sum(
            headers[path][stored].num_bytes(shard) for path in places for stored, shard in places[path].values()
        )
        done = 0

        def count(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            if on_read is not None:
                on_read(done, total)

        for path, placed in places.items():
            with TensorFile.open(path, headers[path], count) as file:
                for name, (stored, shard) in placed.items():
                    yield name, file.read(stored, shard, dtype=dtype, device=device)

    def _headers(self, places: Mapping[Path, Mapping[str, Place]]) -> Mapping[Path, Mapping[str, Entry]]:
        headers = {path: read_header(path) for path in places}
        for path, header in headers.items():
            self._check_file(path, header, places[path])
        return headers

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

    def _check_file(self, path: Path, header: Mapping[str, Entry], places: Mapping[str, Place]) -> None:
        """Refuse a file whose header is not what index and config say."""
        if elsewhere := sorted(name for name in header if self.files.get(name, path) != path):
            raise CheckpointError(
                f"{path}: tensor {elsewhere[0]!r} is stored here, while {self.source.name} places it in "
                f"{self.files[elsewhere[0]].name}; fetch both files again"
            )
        for stored, shard in places.values():
            if stored not in header:
                raise CheckpointError(f"{path}: tensor {stored!r} is missing, though the index says it is here")
            self._check_tensor(f"{path}: tensor {stored!r}", header[stored], shard)

    def _check_tensor(self, at: str, entry: Entry, shard: Shard) -> None:
        dtype = entry.dtype
        if entry.shape != shard.full:
            raise CheckpointError(f"{at} has shape {list(entry.shape)}, the config wants {list(shard.full)}")
        if dtype not in TORCH_NAMES:
            raise CheckpointError(f"{at} has dtype {dtype}; one of {', '.join(TORCH_NAMES)} is needed")
        # The same bytes mean other numbers in the other one; fp32 beside either cannot be mistaken.
        if {TORCH_NAMES[dtype], self.dtype} == {"bfloat16", "float16"}:
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
    return dict.fromkeys(read_header(source), source)


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
