"""Safetensors on disk to one rank's parameters. Reads only the slices the rank holds; opens nothing but safetensors.

A checkpoint is refused before a weight is used when a tensor is missing, unexpected, of the wrong shape or dtype, or
its file is missing, truncated or outside the directory; the error names the file and the tensor.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from glm_cluster.errors import CheckpointError
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.glm import GlmForCausalLM
from glm_cluster.model.ranks import Ranks
from glm_cluster.model.sharding import Shard, Sharding

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

Progress = Callable[[str, float], None]


def load_model(
    directory: Path, *, ranks: Ranks, dtype: str = "auto", on_progress: Progress | None = None
) -> GlmForCausalLM:
    """Build this rank's model from a Hugging Face directory, on the ranks' device, ready for inference.

    `dtype` "auto" keeps what config.json says (fp16 weights become bf16: fp16 overflows in GLM).
    """
    config = GlmConfig.from_directory(directory)
    torch_dtype = resolve_dtype(config, dtype)
    with torch.device("meta"):
        model = GlmForCausalLM(config, ranks)
    tensors = dict(_read(directory, config, ranks, torch_dtype, on_progress))
    model.load_state_dict(tensors, strict=True, assign=True)
    model.model.rotary.inv_freq = model.model.rotary.frequencies(torch.device("cpu")).to(ranks.device)
    return model.eval().requires_grad_(False)


def resolve_dtype(config: GlmConfig, dtype: str) -> torch.dtype:
    """The dtype to compute in."""
    if dtype != "auto":
        return DTYPES[dtype]
    return DTYPES.get(config.dtype, torch.bfloat16)


def weight_files(directory: Path) -> dict[str, Path]:
    """Map each tensor name to the file that holds it, from the index or the single file."""
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


def _read(
    directory: Path, config: GlmConfig, ranks: Ranks, dtype: torch.dtype, on_progress: Progress | None
) -> Iterator[tuple[str, Tensor]]:
    shards = Sharding(config, ranks.rank, ranks.size).tensors()
    files = weight_files(directory)
    if config.tie_word_embeddings:
        files.pop("lm_head.weight", None)  # some tied checkpoints store the matrix twice
    _compare_names(directory, shards, files)
    done = 0
    for path in sorted(set(files.values())):
        for name, tensor in _read_file(path, {n: shards[n] for n, p in files.items() if p == path}):
            yield name, tensor.to(device=ranks.device, dtype=dtype)
            done += 1
            if on_progress is not None:
                on_progress("loading weights", done / len(files))


def _compare_names(directory: Path, shards: Mapping[str, Shard], files: Mapping[str, Path]) -> None:
    if missing := sorted(shards.keys() - files.keys()):
        raise CheckpointError(f"{directory}: tensor {missing[0]!r} is missing ({len(missing)} missing in all)")
    if unexpected := sorted(files.keys() - shards.keys()):
        name = unexpected[0]
        raise CheckpointError(f"{files[name]}: tensor {name!r} has no place in this model ({len(unexpected)} such)")


def _read_file(path: Path, wanted: Mapping[str, Shard]) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            present = set(file.keys())
            for name, shard in wanted.items():
                if name not in present:
                    raise CheckpointError(f"{path}: tensor {name!r} is missing, though the index says it is here")
                stored = file.get_slice(name)
                _check_tensor(path, name, stored.get_shape(), stored.get_dtype(), shard)
                yield name, _cut(stored, shard)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def _check_tensor(path: Path, name: str, shape: list[int], dtype: str, shard: Shard) -> None:
    if tuple(shape) != shard.full:
        raise CheckpointError(f"{path}: tensor {name!r} has shape {list(shape)}, the config wants {list(shard.full)}")
    if dtype not in _STORED:
        raise CheckpointError(f"{path}: tensor {name!r} has dtype {dtype}; one of {', '.join(_STORED)} is needed")


def _cut(stored: "SafeSlice", shard: Shard) -> Tensor:  # type: ignore[name-defined]  # noqa: F821
    """Read the ranges of one tensor, joined, with zero rows appended up to the shard's length."""
    lead = (slice(None),) * shard.dim
    parts: list[Tensor] = [stored[(*lead, slice(start, stop))] for start, stop in shard.ranges if stop > start]
    have = sum(stop - start for start, stop in shard.ranges)
    if have < shard.length:
        pad = (*shard.shape[: shard.dim], shard.length - have, *shard.shape[shard.dim + 1 :])
        parts.append(torch.zeros(pad, dtype=parts[0].dtype if parts else _STORED[stored.get_dtype()]))
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim=shard.dim)
