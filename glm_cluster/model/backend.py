"""What computes an engine's steps: the native kernels where they can, else torch, slower and as faithful.

Knows both; the layers and the engine know neither.
"""

import ctypes
import logging
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from glm_cluster.errors import ConfigError
from glm_cluster.model.attention import ROW_MULTIPLE, Attend, KvCache, PagedAttention, Ragged
from glm_cluster.model.checkpoints.checkpoint import ReadProgress
from glm_cluster.model.checkpoints.weights import OnModule
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.kernels.build import Refusal
from glm_cluster.model.kernels.fused import FusedLayer, FusedNorm, FusedStack
from glm_cluster.model.kernels.native import library
from glm_cluster.model.kernels.packed import PackedLinear
from glm_cluster.model.kernels.paged import NativeAttention
from glm_cluster.model.layers import DecoderLayer
from glm_cluster.model.loading import Opened, open_model
from glm_cluster.model.ranks import Ranks
from glm_cluster.model.threads import usable_cores
from glm_cluster.records import Quantization, Task

logger = logging.getLogger(__name__)


class Backend(Protocol):
    """How a model's steps are computed. A row's bits depend on nothing but its own sequence."""

    row_multiple: int  # rows of a step are padded to a multiple of this

    def attention(self, cache: KvCache, ragged: Ragged) -> Attend:
        """What the layers call in a step."""
        ...


class TorchBackend:
    """Torch's own operations, on any device. Padded rows make GEMMs take the same path whatever their number."""

    row_multiple = ROW_MULTIPLE

    def attention(self, cache: KvCache, ragged: Ragged) -> Attend:
        return PagedAttention(cache, ragged)


class NativeBackend:
    """The kernels of `model.kernels`, on a CPU."""

    row_multiple = 1

    def __init__(self, native: ctypes.CDLL) -> None:
        self._native = native

    def attention(self, cache: KvCache, ragged: Ragged) -> Attend:
        return NativeAttention(self._native, cache, ragged)

    def put_into(self, model: Any, quantization: Quantization) -> OnModule:
        """What puts the fast form of each module in the place of the plain one as soon as that has its weights."""
        native, decoder = self._native, model.decoder
        native.glm_set_threads(min(torch.get_num_threads(), usable_cores()))
        head, score = getattr(model, "lm_head", None), getattr(model, "score", None)

        def put(module: nn.Module) -> None:
            if isinstance(module, DecoderLayer):
                fused = FusedLayer(native, module, model.config, model.ranks, quantization)
                decoder.layers[module.self_attn.layer] = fused
            elif isinstance(module, nn.ModuleList) and model.ranks.size == 1:
                decoder.layers = nn.ModuleList([FusedStack(native, list(decoder.layers))])
            elif module is decoder.norm:
                decoder.norm = FusedNorm(native, module)
            elif module is head:
                model.lm_head = PackedLinear(native, [module], quantization)
            elif module is score:
                model.score = PackedLinear(native, [module])

        return put


def load_with_backend(
    directory: Path,
    *,
    ranks: Ranks,
    dtype: str = "auto",
    quantization: Quantization = "none",
    task: Task = "generate",
    on_read: ReadProgress | None = None,
) -> tuple[Any, Backend]:
    """This rank's model of a task, for the engine alone, and the fastest backend that can compute it.

    Says why where that is not the native one on a CPU. Raises ConfigError where a quantization is asked for that only
    the native one has, before any weight is read.
    """
    opened = open_model(directory, ranks=ranks, dtype=dtype, task=task)
    native = _agreed(_native_for(opened), ranks)
    if isinstance(native, ctypes.CDLL):
        backend = NativeBackend(native)
        return opened.fill(on_read, backend.put_into(opened.model, quantization)), backend
    if quantization != "none":
        raise ConfigError(f"quantization {quantization} needs the native CPU kernels. {native.reason}")
    if ranks.device.type == "cpu":
        logger.warning("Computing with torch's own operations, several times slower: %s", native.reason)
    return opened.fill(on_read), TorchBackend()


def _agreed(native: ctypes.CDLL | Refusal, ranks: Ranks) -> ctypes.CDLL | Refusal:
    """The kernels if every rank of the group has them: ranks must cut their steps into the same rows."""
    have_all = ranks.least(int(isinstance(native, ctypes.CDLL)))
    return native if have_all or isinstance(native, Refusal) else Refusal(reason="Another rank of the group has none.")


def _native_for(opened: Opened) -> ctypes.CDLL | Refusal:
    ranks, config = opened.model.ranks, opened.model.config
    if ranks.device.type != "cpu":
        return Refusal(reason=f"The native kernels are for CPUs, and the device is {ranks.device.type}.")
    return _unfit(config, opened.dtype, ranks.size) or library()


def _unfit(config: GlmConfig, dtype: torch.dtype, tp: int) -> Refusal | None:
    """What the kernels do not do; every published GLM passes."""
    if dtype not in (torch.bfloat16, torch.float32):
        return Refusal(reason=f"The native kernels compute in bfloat16 and float32, not {dtype}.")
    if config.hidden_act not in ("silu", "swish"):
        return Refusal(reason=f"The native kernels have no {config.hidden_act}.")
    widths = (config.hidden_size, config.head_dim, config.rotary_dim, config.intermediate_size // tp)
    if any(width % 2 for width in widths):
        return Refusal(reason="The native kernels need even widths.")
    return None
