"""Damaged and hostile weight files: a CheckpointError that names the file, or the very same weights. Nothing else."""

import json
import os
import pickle
import random
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import edit_json

from glm_cluster.errors import CheckpointError
from glm_cluster.model.checkpoints.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.loading import load_model
from glm_cluster.model.ranks import Ranks
from glm_cluster.model.sharding import Sharding

Tensors: TypeAlias = Mapping[str, torch.Tensor]
NORM = "model.norm.weight"
SHARD, LAST = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def read(directory: Path, config: GlmConfig | None = None) -> dict[str, torch.Tensor]:
    """Every tensor, as the engine's loader gets it; `check` must have said the same."""
    config = config or GlmConfig.from_directory(directory)
    wanted = Sharding(config, 0, 1).tensors()
    checkpoint = Checkpoint.open(directory, config)
    foreseen = verdict(lambda: checkpoint.check(wanted))
    tensors: dict[str, torch.Tensor] = {}
    said = verdict(lambda: tensors.update(checkpoint.read(wanted)))
    assert said == foreseen
    if said is not None:
        raise CheckpointError(said)
    return tensors


def verdict(run: Callable[[], object]) -> str | None:
    """The refusal, if it is one."""
    try:
        run()
    except CheckpointError as error:
        return error.message
    return None


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        read(directory)
    return raised.value.message


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.fixture
def directory(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """One layer in bf16, its last norm in fp32."""
    made = Path(shutil.copytree(checkpoint(num_hidden_layers=1, dtype="bfloat16"), tmp_path / "checkpoint"))
    tensors = load_file(made / SINGLE_FILE)
    save_file({**tensors, NORM: tensors[NORM].float()}, made / SINGLE_FILE, metadata={"format": "pt"})
    return made


@pytest.fixture
def sharded(directory: Path) -> Path:
    """The same in two files and an index."""
    tensors = load_file(directory / SINGLE_FILE)
    (directory / SINGLE_FILE).unlink()
    save_file({NORM: tensors.pop(NORM)}, directory / LAST)
    save_file(tensors, directory / SHARD)
    place_tensors(directory, **dict.fromkeys(tensors, SHARD), **{NORM: LAST})
    return directory


def place_tensors(directory: Path, **places: str) -> None:
    """Write the index, or change it."""
    index = directory / INDEX_FILE
    known = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
    index.write_text(json.dumps({"weight_map": {**known, **places}}))


def header_length(whole: bytes) -> int:
    """Of the length word and the header."""
    return 8 + int(struct.unpack_from("<Q", whole)[0])


def with_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite a file's header, leaving its data as it is."""
    whole = path.read_bytes()
    end = header_length(whole)
    header = json.loads(whole[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[end:])


def flips(header: bytes) -> Iterator[tuple[int, bytes]]:
    """Every single bit; every byte as each character that JSON, a number or a dtype could turn upon."""
    for at, byte in enumerate(header):
        values = {byte ^ (1 << bit) for bit in range(8)} | {*b'\0 "{}],:\\09.-eFB'}
        yield from ((at, bytes([value])) for value in sorted(values - {byte}))


def smears(header: bytes) -> Iterator[tuple[int, bytes]]:
    """A few thousand seeded damages of several bytes: noise, zeros, or a piece of the header itself."""
    rng = random.Random(5)
    for _ in range(4000):
        at, size = rng.randrange(len(header)), rng.randrange(2, 65)
        start = rng.randrange(len(header))
        patch = rng.choice([rng.randbytes(size), bytes(size), header[start : start + size]])[: len(header) - at]
        if header[at : at + len(patch)] != patch:
            yield at, patch


def outcome(directory: Path, config: GlmConfig, original: Tensors) -> str:
    try:
        return "same" if same(read(directory, config), original) else "other weights"
    except CheckpointError as error:
        return "refused" if SINGLE_FILE in error.message else f"refused without the file: {error.message}"


@pytest.mark.parametrize("damages", [flips, smears])
def test_a_damaged_header_is_refused_or_means_the_same(
    directory: Path, damages: Callable[[bytes], Iterator[tuple[int, bytes]]]
) -> None:
    """Never other weights, never another error. (A flip in the file's free-text metadata means the same.)

    A header that is consistent in itself and with config.json is believed: two tensors of one size whose offsets, or
    names, were exchanged would load as each other, and so would changed bytes of a weight. Only a checksum tells, and
    safetensors files carry none.
    """
    path, config = directory / SINGLE_FILE, GlmConfig.from_directory(directory)
    whole = path.read_bytes()
    header, original = whole[: header_length(whole)], {n: t.clone() for n, t in read(directory).items()}
    seen: Counter[str] = Counter()
    with path.open("r+b", buffering=0) as file:
        for at, patch in damages(header):
            os.pwrite(file.fileno(), patch, at)
            seen[outcome(directory, config, original)] += 1
            os.pwrite(file.fileno(), header[at : at + len(patch)], at)
    assert seen.keys() <= {"refused", "same"}
    assert seen["refused"] > 3000
    assert same(read(directory), original), "the damages were put right again"


def test_a_file_cut_anywhere_is_refused(directory: Path) -> None:
    path = directory / SINGLE_FILE
    whole = path.read_bytes()
    end = header_length(whole)
    for size in [*range(end + 2), (end + len(whole)) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert f"{path} is not a whole safetensors file" in refusal(directory), size
    path.write_bytes(whole + b"\0")
    assert f"{path} is not a whole safetensors file" in refusal(directory)


@pytest.mark.parametrize("length", [0, 1, 100_000_001, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_header_of_any_claimed_length_is_refused(directory: Path, length: int) -> None:
    path = directory / SINGLE_FILE
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    assert f"{path} is not a whole safetensors file" in refusal(directory)


LAYER = "model.layers.0."
NORMS = (f"{LAYER}input_layernorm.weight", f"{LAYER}post_attention_layernorm.weight")


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h[NORMS[1]].update(data_offsets=h[NORMS[0]]["data_offsets"]),  # both in one place
        lambda h: h[NORMS[0]].update(data_offsets=h[NORMS[0]]["data_offsets"][::-1]),
        lambda h: h[NORM].update(data_offsets=[o + 2**40 for o in h[NORM]["data_offsets"]]),
        lambda h: h[NORM].update(data_offsets=[-256, 0]),
        lambda h: h[NORM].update(shape=[2**33, 2**33]),
        lambda h: h[NORM].update(shape=[-64]),
        lambda h: h[NORM].update(shape=[]),
        lambda h: h[NORM].update(shape=[8, 8]),
        lambda h: h[NORM].update(shape=[32, 2]),
        lambda h: h[NORM].update(dtype="I32"),
        lambda h: h[NORM].update(dtype="F32 "),
        lambda h: h.update({"": h.pop(NORM)}),
        lambda h: h.update({NORM + "\0": h.pop(NORM)}),
        lambda h: h.update({NORM.upper(): h.pop(NORM)}),
        lambda h: h.update({NORM + "\u200b": h.pop(NORM)}),
        lambda h: h.update(__metadata__={"format": 1}),
        lambda h: h.clear(),
    ],
)
def test_headers_that_lie_are_refused(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    with_header(directory / SINGLE_FILE, change)
    assert SINGLE_FILE in refusal(directory)


def test_a_deeply_nested_header_is_refused(directory: Path) -> None:
    text = b'{"a":' * 100_000
    (directory / SINGLE_FILE).write_bytes(struct.pack("<Q", len(text)) + text)
    assert SINGLE_FILE in refusal(directory)


def test_half_precision_of_the_other_kind_is_refused(directory: Path) -> None:
    """Both have 16 bits: read as the other, every weight would be another number."""
    with_header(directory / SINGLE_FILE, lambda h: h[NORMS[0]].update(dtype="F16"))
    assert refusal(directory).endswith(
        f"{SINGLE_FILE}: tensor {NORMS[0]!r} has dtype F16, config.json says bfloat16; correct which is wrong"
    )


def test_a_config_of_the_other_kind_is_refused(directory: Path) -> None:
    edit_json(directory / "config.json", dtype="float16")
    assert "has dtype BF16, config.json says float16" in refusal(directory)


@pytest.mark.parametrize("dtype", ["float32", None])
def test_half_precision_is_read_where_the_config_names_none(directory: Path, dtype: str | None) -> None:
    edit_json(directory / "config.json", dtype=dtype)
    assert {t.dtype for t in read(directory).values()} == {torch.bfloat16, torch.float32}


def make_directory(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_dangling(path: Path) -> None:
    path.symlink_to("nothing")


@pytest.mark.parametrize("make", [make_directory, make_pipe, make_loop, make_dangling])
@pytest.mark.parametrize("name", [SHARD, INDEX_FILE])
def test_what_is_no_file_is_refused(sharded: Path, name: str, make: Callable[[Path], None]) -> None:
    """A pipe would be waited upon for ever."""
    (sharded / name).unlink()
    make(sharded / name)
    assert name in refusal(sharded)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", [SHARD, INDEX_FILE])
def test_an_unreadable_file_is_named(sharded: Path, name: str) -> None:
    (sharded / name).chmod(0)
    assert f"{sharded / name} cannot be read" in refusal(sharded)


def test_files_may_be_links_out_of_the_directory(sharded: Path, tmp_path: Path) -> None:
    """A hub cache is a directory of links into another one."""
    whole = read(sharded)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in list(sharded.iterdir()):
        (blobs / path.name).write_bytes(path.read_bytes())
        path.unlink()
        path.symlink_to(Path("..") / "blobs" / path.name)
    assert same(read(sharded), whole)


@pytest.mark.parametrize(
    "file",
    [
        *("", ".", "..", "/", "/etc/passwd", "../x.safetensors", "sub/x.safetensors", f"./{SHARD}", f"{SHARD}/"),
        *("pytorch_model.bin", "model.pt", "model.ckpt", "config.json", "x.safetensors.bin", "x.SAFETENSORS"),
        *("x\0.safetensors", f"{SHARD}\0", "\ud800.safetensors", "a" * 300 + ".safetensors", ".safetensors"),
    ],
)
def test_an_index_names_nothing_but_safetensors_beside_it(sharded: Path, file: str) -> None:
    """Not even where what it names would serve."""
    good = sharded / LAST
    for name in ("pytorch_model.bin", "x.safetensors.bin", "x.SAFETENSORS", "../x.safetensors", "sub/x.safetensors"):
        (sharded / name).parent.mkdir(exist_ok=True)
        shutil.copy(good, sharded / name)
    good.unlink()
    place_tensors(sharded, **{NORM: file})
    assert str(sharded) in refusal(sharded)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"weight_map":' * 100_000, "\ud800", "\ufeff{}", "", '{"weight_map": 1}']
)
def test_an_index_that_is_none_is_refused(sharded: Path, text: str) -> None:
    (sharded / INDEX_FILE).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert str(sharded / INDEX_FILE) in refusal(sharded)


def test_a_tensor_in_two_files_is_refused(sharded: Path) -> None:
    """Which of the two was meant, nobody can say."""
    tensors = load_file(sharded / SHARD)
    save_file({**tensors, NORM: torch.ones(64)}, sharded / SHARD)
    assert f"{SHARD}: tensor {NORM!r} is stored here, while {INDEX_FILE} places it in " in refusal(sharded)


class Hostile:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self._mark),)


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*given: object, **named: object) -> None:
        raise AssertionError("a pickle is being opened")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, explode)


def test_the_hostile_pickle_is_hostile(tmp_path: Path) -> None:
    """Else the next test could not fail."""
    torch.save(Hostile(tmp_path / "mark"), tmp_path / "evil.bin")
    torch.load(tmp_path / "evil.bin", weights_only=False)
    assert (tmp_path / "mark").is_dir()


@pytest.mark.usefixtures("no_pickle")
@pytest.mark.parametrize("name", ["pytorch_model.bin", SINGLE_FILE, SHARD, INDEX_FILE])
def test_no_pickle_is_ever_opened(directory: Path, name: str) -> None:
    """Alone in the directory, behind an index, or under a safetensors file's name."""
    (directory / SINGLE_FILE).unlink()
    torch.save(Hostile(directory / "mark"), directory / name)
    if name in ("pytorch_model.bin", SHARD):
        with pytest.raises(CheckpointError, match="safetensors"):
            load_model(directory, ranks=Ranks.single())
        place_tensors(directory, **dict.fromkeys(load_names(directory), name))
    with pytest.raises(CheckpointError, match=name):
        load_model(directory, ranks=Ranks.single())
    assert not (directory / "mark").exists()


def load_names(directory: Path) -> list[str]:
    return list(Sharding(GlmConfig.from_directory(directory), 0, 1).tensors())


@pytest.mark.usefixtures("no_pickle")
def test_a_pickle_beside_good_files_is_left_alone(directory: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        torch.save(Hostile(directory / "mark"), directory / name)
    load_model(directory, ranks=Ranks.single())
    assert not (directory / "mark").exists()
