"""The C interface of the kernels: `abi.h` field by field, and what each function takes. Knows pointers, no model.

Calls check nothing: who builds these structures keeps the tensors they point into, contiguous and of the dtype said.
"""

import ctypes
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from glm_cluster.model.kernels.build import Native, Refusal, native_kernels

NEEDS = ("avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_vnni")
DTYPES = {torch.bfloat16: 0, torch.float32: 1, torch.int8: 2}


class Weight(ctypes.Structure):
    """A packed matrix."""

    _fields_ = [
        ("words", c_void_p),
        ("scales", c_void_p),
        ("offsets", c_void_p),
        ("bias", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("dtype", c_int32),
    ]


class Shape(ctypes.Structure):
    """What all layers of a model and their caches have in common."""

    _fields_ = [
        *((name, c_int64) for name in ("hidden", "heads", "kv_heads", "head_dim", "rotary_dim", "intermediate")),
        *((name, c_int64) for name in ("num_blocks", "block_tokens")),
        ("norm_eps", c_float),
        ("dtype", c_int32),
    ]


class Cache(ctypes.Structure):
    """Keys and values of one layer."""

    _fields_ = [("keys", c_void_p), ("values", c_void_p)]


class Layer(ctypes.Structure):
    """One decoder layer's weights, and its cache of the moment."""

    _fields_ = [
        *((name, Weight) for name in ("qkv", "o", "gate_up", "down")),
        *((name, c_void_p) for name in ("input_norm", "post_attention_norm", "post_self_attn_norm", "post_mlp_norm")),
        ("cache", Cache),
    ]


class Step(ctypes.Structure):
    """The rows of one step."""

    _fields_ = [
        ("tokens", c_int64),
        ("sequences", c_int64),
        *((name, c_void_p) for name in ("slots", "cos", "sin")),
        *((name, c_void_p) for name in ("first_row", "num_tokens", "start", "first_block", "blocks")),
    ]


_ARGUMENTS = {
    "glm_set_threads": [c_int32],
    "glm_pack": [POINTER(Weight), c_int64, c_void_p, c_int64, c_int32],
    "glm_linear": [POINTER(Weight), c_void_p, c_void_p, c_int64, c_int32],
    "glm_norm": [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_float, c_int32],
    "glm_attention_half": [POINTER(Shape), POINTER(Layer), POINTER(Step), c_void_p, c_void_p],
    "glm_mlp_half": [POINTER(Shape), POINTER(Layer), POINTER(Step), c_void_p, c_void_p, c_void_p, c_void_p],
    "glm_layers": [POINTER(Shape), POINTER(Layer), c_int64, POINTER(Step), c_void_p],
    "glm_add": [POINTER(Shape), POINTER(Layer), c_int64, c_void_p, c_void_p],
    "glm_attend": [POINTER(Shape), POINTER(Cache), POINTER(Step), c_void_p, c_void_p, c_void_p, c_void_p],
}


@cache
def library() -> ctypes.CDLL | Refusal:
    """The kernels of this host with typed functions, or why there are none."""
    kernels = native_kernels(NEEDS)
    if not isinstance(kernels, Native):
        return kernels
    for name, arguments in _ARGUMENTS.items():
        function = getattr(kernels.library, name)
        function.argtypes, function.restype = arguments, None
    return kernels.library


def address(tensor: Tensor | None) -> int | None:
    """Where a contiguous tensor's elements lie."""
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()
