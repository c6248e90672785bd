"""The weights of a checkpoint written anew in Hugging Face's layout: THUDM's `chatglm`, or HF's own in other shards.

Knows names, shards and the index. Knows no tokenizer (see `glm_cluster.convert`), and opens nothing but safetensors.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from glm_cluster.errors import ConfigError
from glm_cluster.model.checkpoints.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint, ReadProgress
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.generation.config import GenerationConfig
from glm_cluster.model.loading import MODEL_OF
from glm_cluster.model.pretrained import PretrainedModel


def convert_weights(source: Path, target: Path, *, max_shard_bytes: int, on_read: ReadProgress | None = None) -> None:
    """Write config.json, generation_config.json and safetensors into `target`, an empty directory.

    Tensors keep their dtype and are read one by one: no more than one shard is ever in memory.
    """
    config = GlmConfig.from_pretrained(source)
    kind = _kind(config)
    with torch.device("meta"):
        wanted = kind(config).shards()
    shards = ShardWriter(target, max_shard_bytes)
    for name, tensor in Checkpoint.open(source, config).read(wanted, on_read):
        shards.add(name if kind.prefix else name.removeprefix("model."), tensor)
    shards.close()
    keys = {**config.to_dict(), "dtype": config.dtype or shards.dtype}
    keys["architectures"] = [config.architecture(kind.kind)]
    keys.pop("auto_map", None)  # names code beside the source
    GlmConfig(**keys).save_pretrained(target)
    GenerationConfig.from_directory(source, config).save(target)


class ShardWriter:
    """Safetensors files of at most `limit` bytes (but for a single larger tensor), and their index.

    The names HF gives its files hold their number, so they are written under others and renamed by `close`.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory = directory
        self._limit = limit
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0
        self._files: list[tuple[str, ...]] = []  # the tensors of each
        self._total_bytes = self._total_numbers = 0
        self.dtype: str | None = None  # of the first tensor

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor, having first written those held where it finds no room beside them."""
        num_bytes = tensor.numel() * tensor.element_size()
        if self._held and self._held_bytes + num_bytes > self._limit:
            self._flush()
        self._held[name] = tensor
        self._held_bytes += num_bytes
        self._total_bytes += num_bytes
        self._total_numbers += tensor.numel()
        self.dtype = self.dtype or str(tensor.dtype).removeprefix("torch.")

    def close(self) -> None:
        """Write what is held, give the files HF's names, and write the index where there are several."""
        self._flush()
        count = len(self._files)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._files, 1):
            file = SINGLE_FILE if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
            self._unnamed(number).rename(self._directory / file)
            weight_map |= dict.fromkeys(names, file)
        if count > 1:
            metadata = {"total_size": self._total_bytes, "total_parameters": self._total_numbers}
            text = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True)
            (self._directory / INDEX_FILE).write_text(text + "\n", encoding="utf-8")

    def _flush(self) -> None:
        path = self._unnamed(len(self._files) + 1)
        try:
            save_file(self._held, path, metadata={"format": "pt"})
        except SafetensorError as error:
            raise ConfigError(f"{path} cannot be written ({error}); is there room on the disk?") from error
        path.chmod(0o644)  # the library leaves it to its owner alone
        self._files.append(tuple(self._held))
        self._held, self._held_bytes = {}, 0

    def _unnamed(self, number: int) -> Path:
        return self._directory / f"model-{number:05}.part"


def _kind(config: GlmConfig) -> type[PretrainedModel]:
    """The class that the checkpoint was saved from; a language model's where the config names none of ours."""
    named = config.extra.get("architectures") or ()
    return next((kind for kind in MODEL_OF.values() if config.architecture(kind.kind) in named), MODEL_OF["generate"])
