"""A step's attention for the kernels: the same question as `attention.PagedAttention` answers, in one native call.

Shape legend: T query tokens, N query heads, K KV heads, D head width, S sequences.
"""

import ctypes
from collections.abc import Iterable

import torch
from torch import Tensor

from glm_cluster.model.attention import KvCache, Ragged
from glm_cluster.model.kernels.native import DTYPES, Cache, Layer, Shape, Step, address


class NativeAttention:
    """Where a step's rows stand, for every layer; and, called as `Attend` is, the attention alone.

    Keys lie in the cache in an order of the kernels' own (`abi.h`): only they may read it.
    """

    def __init__(self, native: ctypes.CDLL, cache: KvCache, ragged: Ragged) -> None:
        self._native, self.cache = native, cache
        first_block = [0]
        for table in ragged.tables:
            first_block.append(first_block[-1] + len(table))
        columns = (ragged.first_rows, ragged.num_tokens, ragged.starts, first_block[:-1])
        self._table_S = torch.tensor(columns, dtype=torch.int64)  # [4, S]
        self._blocks = torch.tensor([block for table in ragged.tables for block in table], dtype=torch.int64)
        self._slots_T = torch.tensor(ragged.slots, dtype=torch.int64)
        rows = [address(column) for column in self._table_S]
        self._step = Step(len(ragged.slots), len(ragged.tables), address(self._slots_T), None, None, *rows)
        self._step.blocks = address(self._blocks)

    def step(self, cos_TR: Tensor, sin_TR: Tensor) -> Step:
        """The step's rows, with their cosines and sines."""
        self._step.cos, self._step.sin = address(cos_TR), address(sin_TR)
        return self._step

    def __call__(self, index: int, q_TND: Tensor, k_TKD: Tensor, v_TKD: Tensor, /) -> Tensor:
        keys = self.cache.keys[index]
        shape = Shape(heads=q_TND.shape[1], kv_heads=keys.shape[0], head_dim=keys.shape[3], dtype=DTYPES[keys.dtype])
        shape.num_blocks, shape.block_tokens = keys.shape[1], keys.shape[2]
        q_TND, k_TKD, v_TKD = q_TND.contiguous(), k_TKD.contiguous(), v_TKD.contiguous()
        out_TND = torch.empty_like(q_TND)
        pointers = map(address, (q_TND, k_TKD, v_TKD, out_TND))
        self._native.glm_attend(shape, _of(self.cache, index), self._step, *pointers)
        return out_TND


def point_at(cache: KvCache, first: int, shape: Shape, layers: Iterable[Layer]) -> None:
    """Let layers `first`, `first` + 1, ... keep their keys and values in `cache`."""
    shape.num_blocks, shape.block_tokens = cache.keys[first].shape[1:3]
    for index, layer in enumerate(layers, first):
        layer.cache = _of(cache, index)


def _of(cache: KvCache, index: int) -> Cache:
    return Cache(address(cache.keys[index]), address(cache.values[index]))
