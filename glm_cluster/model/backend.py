"""What computes an engine's steps: the native kernels where they can, else torch, slower and as faithful.

Knows both; the layers and the engine know neither.
"""

import ctypes
import logging
from typing import Any, Protocol

import torch

from glm_cluster.errors import ConfigError
from glm_cluster.model.attention import ROW_MULTIPLE, Attend, KvCache, PagedAttention, Ragged
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.kernels.build import Refusal
from glm_cluster.model.kernels.fused import FusedLayer, FusedNorm
from glm_cluster.model.kernels.native import DTYPES, library
from glm_cluster.model.kernels.packed import PackedLinear, Quantization
from glm_cluster.model.kernels.paged import NativeAttention
from glm_cluster.model.pretrained import PretrainedModel

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

    def prepare(self, model: Any, quantization: Quantization) -> None:
        """Put the fast form of each module in the place of the plain one, and let go of its weights."""
        native, decoder = self._native, model.decoder
        native.glm_set_threads(torch.get_num_threads())
        for index, plain in enumerate(decoder.layers):
            decoder.layers[index] = FusedLayer(native, plain, model.config, model.ranks, quantization)
        decoder.norm = FusedNorm(native, decoder.norm)
        if hasattr(model, "lm_head"):
            model.lm_head = PackedLinear(native, [model.lm_head], quantization)
        if hasattr(model, "score"):
            model.score = PackedLinear(native, [model.score])


def choose_backend(model: PretrainedModel, quantization: Quantization = "none") -> Backend:
    """The fastest backend for a loaded model, made ready. Says why where it is not the native one on a CPU.

    Raises ConfigError where a quantization is asked for that only the native one has.
    """
    native = _native_for(model)
    if isinstance(native, ctypes.CDLL):
        backend = NativeBackend(native)
        backend.prepare(model, quantization)
        return backend
    if quantization != "none":
        raise ConfigError(f"quantization {quantization} needs the native CPU kernels: {native.reason}")
    if model.ranks.device.type == "cpu":
        logger.warning("Computing with torch's own operations, several times slower: %s", native.reason)
    return TorchBackend()


def _native_for(model: PretrainedModel) -> ctypes.CDLL | Refusal:
    if model.ranks.device.type != "cpu":
        return Refusal(reason=f"The native kernels are for CPUs, and the device is {model.ranks.device.type}.")
    return _unfit(model.config, model.dtype, model.ranks.size) or library()


def _unfit(config: GlmConfig, dtype: torch.dtype, tp: int) -> Refusal | None:
    """What the kernels do not do; every published GLM passes."""
    if dtype not in DTYPES:
        return Refusal(reason=f"The native kernels compute in bfloat16 and float32, not {dtype}.")
    if config.hidden_act not in ("silu", "swish"):
        return Refusal(reason=f"The native kernels have no {config.hidden_act}.")
    widths = (config.hidden_size, config.head_dim, config.rotary_dim, config.intermediate_size // tp)
    if any(width % 2 for width in widths):
        return Refusal(reason="The native kernels need even widths.")
    return None
