"""One file's tensors, in whole and in part: what is read, into which dtype, and what a broken file is told."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from glm_cluster.errors import CheckpointError
from glm_cluster.model.checkpoints import tensor_file
from glm_cluster.model.checkpoints.tensor_file import TensorFile, read_header
from glm_cluster.model.sharding import Shard

DTYPES = ("float32", "bfloat16", "float16")
SHARDS = {
    "whole": Shard((12, 10), 0, ((0, 12),), 12),
    "rows": Shard((12, 10), 0, ((3, 7),), 4),
    "rows apart": Shard((12, 10), 0, ((1, 3), (8, 12)), 6),
    "rows and padding": Shard((12, 10), 0, ((8, 12),), 6),
    "padding alone": Shard((12, 10), 0, ((12, 12),), 3),
    "columns": Shard((12, 10), 1, ((4, 9),), 5),
    "columns apart": Shard((12, 10), 1, ((0, 2), (7, 8)), 3),
    "all columns": Shard((12, 10), 1, ((0, 10),), 10),
}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(12, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def write(tmp_path: Path, x: Tensor) -> Callable[[str], Path]:
    """A file with `x` in some dtype behind another tensor."""

    def make(dtype: str = "float32") -> Path:
        save_file({"before": torch.ones(7), "x": x.to(getattr(torch, dtype))}, tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    return make


def read(path: Path, shard: Shard, dtype: torch.dtype | None = None, sizes: list[int] | None = None) -> Tensor:
    header = read_header(path)
    with TensorFile.open(path, header, [].append if sizes is None else sizes.append) as file:
        return file.read("x", shard, dtype=dtype, device="cpu")


def expected(x: Tensor, shard: Shard) -> Tensor:
    joined = torch.cat([x.narrow(shard.dim, start, stop - start) for start, stop in shard.ranges], dim=shard.dim)
    padded = torch.zeros(shard.shape, dtype=x.dtype)
    padded.narrow(shard.dim, 0, joined.shape[shard.dim]).copy_(joined)
    return padded


@pytest.mark.parametrize("piece_bytes", [8 << 20, 64, 4])  # one piece, several, one number or row each
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("name", SHARDS)
def test_any_part_in_any_dtype(
    write: Callable[[str], Path], x: Tensor, name: str, stored: str, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "_PIECE_BYTES", piece_bytes)
    path, shard = write(stored), SHARDS[name]
    part = expected(x.to(getattr(torch, stored)), shard)
    for dtype in (None, *(getattr(torch, name) for name in DTYPES)):
        found = read(path, shard, dtype)
        assert found.dtype == (dtype or part.dtype)
        assert torch.equal(found, part.to(found.dtype))
        assert found.is_contiguous()


@pytest.mark.parametrize("name", SHARDS)
def test_every_byte_of_a_part_is_told_once(write: Callable[[str], Path], x: Tensor, name: str) -> None:
    path, shard, sizes = write("bfloat16"), SHARDS[name], []
    read(path, shard, torch.float32, sizes)
    numbers = sum(stop - start for start, stop in shard.ranges) * x.numel() // shard.full[shard.dim]
    assert sum(sizes) == 2 * numbers == read_header(path)["x"].num_bytes(shard)


def test_what_is_read_is_the_callers_own(write: Callable[[str], Path], x: Tensor) -> None:
    path = write()
    first, second = read(path, SHARDS["whole"]), read(path, SHARDS["whole"])
    first.zero_()
    assert torch.equal(second, x)


def test_a_file_cut_short_after_it_was_checked_is_a_sentence(write: Callable[[str], Path]) -> None:
    """A mapping would have been a bus error."""
    path = write()
    header = read_header(path)
    with TensorFile.open(path, header, [].append) as file:
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match="ends before tensor 'x' does"):
            file.read("x", SHARDS["whole"], dtype=None, device="cpu")


def test_a_file_that_went_away_is_a_sentence(write: Callable[[str], Path]) -> None:
    path = write()
    header = read_header(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"), TensorFile.open(path, header, [].append):
        pass


def test_a_tensor_lies_in_its_cache_line_as_in_the_file_unless_it_is_converted(
    write: Callable[[str], Path],
) -> None:
    """Hugging Face computes on the mapped file, and MKL's bits depend on it."""
    path = write("float32")
    start = read_header(path)["x"].start
    assert start % 64, "the test needs a file that is not aligned"
    assert read(path, SHARDS["whole"]).data_ptr() % 64 == start % 64
    assert read(path, SHARDS["whole"], torch.bfloat16).data_ptr() % 64 == 0
