"""One safetensors file: what its header says, and its bytes read straight to where they are wanted.

Knows offsets, and dtypes by the names that the format and torch have for them. Knows no model. Nothing is mapped: the
pages of a mapping would count as this process's memory beside its own copy, and a file cut short meanwhile would kill
it. Imports torch to read weights only: whoever looks at headers stays light.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from safetensors import SafetensorError, safe_open

from glm_cluster.errors import CheckpointError
from glm_cluster.model.sharding import Shard

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TORCH_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # of the dtypes that are read
HEADER_LIMIT = 100_000_000  # bytes; the library's own
_PIECE_BYTES = 8 << 20  # read at once; what passes through another dtype or device takes this much memory beside
_ALIGNED_BYTES = 64  # what torch aligns memory to
_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}

ReadBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor as the header describes it."""

    dtype: str  # in the format's spelling
    shape: tuple[int, ...]
    start: int  # its first byte in the file

    def num_bytes(self, shard: Shard) -> int:
        """What is stored of a shard."""
        rows = sum(stop - start for start, stop in shard.ranges)
        return rows * prod(shard.full) // max(1, shard.full[shard.dim]) * _ITEM_BYTES[self.dtype]


def read_header(path: Path) -> Mapping[str, Entry]:
    """Every tensor by its stored name. The library has checked the header, and that the file is as long as it says."""
    try:
        path.open("rb").close()  # the library says of a file it may not read that it does not exist
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    try:
        with safe_open(path, framework="numpy"):
            data_start, header = _raw_header(path)
    except (SafetensorError, OSError) as error:
        cut = _first_cut(path)
        where = "" if cut is None else f"; it ends before tensor {cut!r} does, so fetch it again"
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}{where}") from error
    return {
        name: Entry(entry["dtype"], tuple(entry["shape"]), data_start + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def _raw_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the data starts, and the header without the file's own metadata."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    return 8 + header_bytes, header


def _first_cut(path: Path) -> str | None:
    """The first tensor that the file is too short for, by its header; None where the header itself is no help."""
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > HEADER_LIMIT:
            return None
        data_start, header = _raw_header(path)
        data_bytes = path.stat().st_size - data_start
        ends = {name: entry["data_offsets"][1] for name, entry in header.items()}
        return min((name for name, end in ends.items() if end > data_bytes), key=ends.__getitem__, default=None)
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return None


class TensorFile:
    """An open file. Reading a tensor takes no memory beside its own but one piece where dtype or device differ."""

    def __init__(self, path: Path, file: FileIO, header: Mapping[str, Entry], on_read: ReadBytes) -> None:
        self._path = path
        self._file = file
        self._header = header
        self._on_read = on_read
        self._piece: Tensor | None = None

    @classmethod
    @contextmanager
    def open(cls, path: Path, header: Mapping[str, Entry], on_read: ReadBytes) -> Iterator[Self]:
        """Open a file whose header was read; `on_read` is told the bytes of every piece."""
        try:
            file = FileIO(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        with file:
            yield cls(path, file, header, on_read)

    def read(self, name: str, shard: Shard, *, dtype: "torch.dtype | None", device: "torch.device | str") -> "Tensor":
        """The ranges of one tensor, joined, with zero rows appended up to its length; `dtype` None: the stored one."""
        import torch

        entry = self._header[name]
        stored: torch.dtype = getattr(torch, TORCH_NAMES[entry.dtype])
        as_mapped = dtype in (None, stored) and torch.device(device).type == "cpu"
        offset = entry.start % _ALIGNED_BYTES if as_mapped else 0
        target = _empty(shard.shape, dtype or stored, device, offset)
        filled = 0
        for start, stop in shard.ranges:
            part = target.narrow(shard.dim, filled, stop - start)
            if shard.dim == 0 or stop - start == shard.full[shard.dim]:
                first = start * prod(shard.full[1:]) if shard.dim == 0 else 0
                self._read_run(name, entry.start + first * stored.itemsize, stored, part)
            else:
                self._read_columns(name, entry.start, stored, part, (start, stop, shard.full[1]))
            filled += stop - start
        target.narrow(shard.dim, filled, shard.length - filled).zero_()
        return target

    def _read_run(self, name: str, at: int, stored: "torch.dtype", part: "Tensor") -> None:
        """Fill `part`, which is contiguous, with neighbouring numbers."""
        flat = part.view(-1)
        step = _PIECE_BYTES // stored.itemsize
        direct = flat.dtype == stored and flat.device.type == "cpu"
        for first in range(0, flat.numel(), step):
            wanted = flat[first : first + step]
            piece = wanted if direct else self._buffer(wanted.numel(), stored)
            self._read_into(name, at + first * stored.itemsize, piece)
            if not direct:
                wanted.copy_(piece)
            self._on_read(piece.nbytes)

    def _read_columns(
        self, name: str, at: int, stored: "torch.dtype", part: "Tensor", columns: tuple[int, int, int]
    ) -> None:
        """Fill `part` with columns `start` to `stop` of rows that are `width` wide, band by band of whole rows."""
        start, stop, width = columns
        step = max(1, _PIECE_BYTES // (width * stored.itemsize))
        for first in range(0, part.shape[0], step):
            band = part[first : first + step]
            piece = self._buffer(band.shape[0] * width, stored)
            self._read_into(name, at + first * width * stored.itemsize, piece)
            band.copy_(piece.view(-1, width)[:, start:stop])
            self._on_read(band.numel() * stored.itemsize)

    def _buffer(self, count: int, dtype: "torch.dtype") -> "Tensor":
        import torch

        if self._piece is None or self._piece.nbytes < count * dtype.itemsize:
            self._piece = torch.empty(max(_PIECE_BYTES, count * dtype.itemsize), dtype=torch.uint8)
        return self._piece[: count * dtype.itemsize].view(dtype)

    def _read_into(self, name: str, at: int, piece: "Tensor") -> None:
        import torch

        left = piece.view(torch.uint8).numpy().data
        try:
            self._file.seek(at)
            while left:
                count = self._file.readinto(left)
                if not count:
                    raise CheckpointError(f"{self._path}: it ends before tensor {name!r} does, so fetch it again")
                left = left[count:]
        except OSError as error:
            raise CheckpointError(f"{self._path} cannot be read: {error.strerror}") from error


def _empty(shape: tuple[int, ...], dtype: "torch.dtype", device: "torch.device | str", offset: int) -> "Tensor":
    """Memory that lies within its cache line as the stored tensor does in the file.

    MKL's bits depend on it (measured, in products with one row), and Hugging Face computes on the mapped file; what it
    converts or moves to another device has memory of its own.
    """
    import torch

    before = offset // dtype.itemsize
    flat = torch.empty(before + prod(shape), dtype=dtype, device=device)
    return flat[before:].view(shape)
