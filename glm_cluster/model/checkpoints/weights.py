"""A model's parameters from a checkpoint's tensors, and to files. Knows a model only by its names and shards."""

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

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

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...


OnModule = Callable[[nn.Module], None]


def fill(model: Fillable, tensors: Iterable[tuple[str, Tensor]], on_module: OnModule | None = None) -> None:
    """Put tensors, by the names they have in a whole checkpoint, in the place of the model's parameters.

    Each is placed before the next is asked for. `on_module` is given every module, innermost first, as soon as the last
    parameter in it is there, and may put others in their place: that of a matrix it packs can then be freed at once.
    """
    blanks = _Blanks(model)
    for name, tensor in tensors:
        whole = blanks.place(name if model.prefix else name.removeprefix("model."), tensor)
        del tensor  # or what a module has packed would live until the next one is read
        for module in whole:
            if on_module is not None:
                on_module(module)
    assert not blanks, "the names were compared with the checkpoint's"


class _Blanks:
    """The parameters of a model that still wait for their tensor. One that several modules share waits for one."""

    def __init__(self, model: Fillable) -> None:
        modules = dict(model.named_modules())
        self._places: dict[nn.Parameter, list[tuple[str, str]]] = defaultdict(list)  # module, and its name there
        for path, module in modules.items():
            for name, parameter in module.named_parameters(recurse=False):
                self._places[parameter].append((path, name))
        self._parameters = {_joined(*places[0]): parameter for parameter, places in self._places.items()}
        self._modules = modules
        self._missing = Counter(
            path for places in self._places.values() for place, _ in places for path in _within(place)
        )

    def __len__(self) -> int:
        return len(self._places)

    def place(self, name: str, tensor: Tensor) -> list[nn.Module]:
        """Fill one parameter; the modules that have all of theirs now, innermost first."""
        blank = self._parameters[name]
        filled = nn.Parameter(tensor, requires_grad=blank.requires_grad)
        places = self._places.pop(blank)
        for path, own_name in places:
            setattr(self._modules[path], own_name, filled)
        whole = []
        for path, _ in places:
            for outer in _within(path):
                self._missing[outer] -= 1
                if not self._missing[outer]:
                    whole.append(self._modules[outer])
        return whole


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _within(path: str) -> Iterator[str]:
    """A module's path, then that of each one around it; the last is the model's own, which is empty."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def fill_or_make(model: Fillable, directory: Path, *, dtype: torch.dtype, device: torch.device) -> None:
    """Fill an unsharded model from a directory; a head that is not there is made anew, with a warning, as HF does."""
    checkpoint = Checkpoint.open(directory, model.config)
    wanted = model.shards()
    fresh = {name: wanted.pop(name) for name in checkpoint.absent(wanted) if not name.startswith("model.")}
    if fresh:
        logger.warning("%s has no %s: it is newly initialised; train it before use", directory, ", ".join(fresh))
    fill(model, chain(checkpoint.read(wanted, dtype=dtype, device=device), _made(model, fresh, dtype, device)))


def _made(
    model: Fillable, fresh: Mapping[str, Shard], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    for name, shard in fresh.items():
        made = torch.empty(shard.shape, dtype=dtype, device=device)
        yield name, made.zero_() if name.endswith("bias") else made.normal_(0, model.config.initializer_range)


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
