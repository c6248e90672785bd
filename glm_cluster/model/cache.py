"""Keys and values of the plain forward, kept between calls: one tensor a layer that grows, or one of a fixed size.

Source: HF `DynamicCache` and `StaticCache` (transformers 5.0.0rc1 and 5.23), their semantics method for method. The
engine has blocks instead (`attention.KvCache`).
Shape legend: B batch, K KV heads, S slots held, D head width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from glm_cluster.model.config import GlmConfig


class CacheLayer(ABC):
    """Rotated keys and values of one layer, [B, K, S, D] each; None before the first update."""

    is_compileable: ClassVar[bool] = False
    is_sliding: ClassVar[bool] = False

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def is_initialized(self) -> bool:
        """Whether there are tensors: anything has been put in, or their memory taken in advance."""
        return self.keys is not None

    @abstractmethod
    def early_initialization(
        self, batch_size: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Make the tensors before there is anything to put in."""

    @abstractmethod
    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [B, K, T, D]; what attention is to read."""

    @abstractmethod
    def get_seq_length(self) -> int | Tensor:
        """Tokens held."""

    @abstractmethod
    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Slots that `update` will return for that many new tokens, and the position of the first."""

    @abstractmethod
    def get_max_length(self) -> int:
        """Most tokens; -1 where there is no bound."""

    @abstractmethod
    def reset(self) -> None:
        """Forget every token."""

    def _each(self, change: Any) -> None:
        if self.keys is not None and self.values is not None:
            self.keys, self.values = change(self.keys), change(self.values)


class DynamicLayer(CacheLayer):
    """Grows by concatenation."""

    def early_initialization(
        self, batch_size: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Hold no tokens, in tensors of the right kind."""
        self.keys, self.values = (
            torch.zeros(batch_size, num_heads, 0, head_dim, dtype=dtype, device=device) for _ in range(2)
        )

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [B, K, T, D]; everything held."""
        if self.keys is None or self.values is None:
            self.keys, self.values = keys.contiguous(), values.contiguous()
        else:
            self.keys, self.values = torch.cat([self.keys, keys], dim=-2), torch.cat([self.values, values], dim=-2)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens held."""
        return 0 if self.keys is None or self.keys.numel() == 0 else self.keys.shape[-2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Those held and those to come."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No bound."""
        return -1

    def reset(self) -> None:
        """Forget every token."""
        self.keys = self.values = None

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` tokens, or drop the last -`max_length` (rc1's way; 5.23 has only the latter)."""
        if max_length < self.get_seq_length():
            self._each(lambda x: x[..., :max_length, :])


class StaticLayer(CacheLayer):
    """Zeros of a fixed size, written in place: the same tensors for the life of the cache."""

    is_compileable: ClassVar[bool] = True

    def __init__(self, max_cache_len: int) -> None:
        super().__init__()
        self.max_cache_len = max_cache_len
        self._num_tokens = torch.tensor(0)

    def early_initialization(
        self, batch_size: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Take the memory of every slot."""
        shape = (batch_size, num_heads, self.max_cache_len, head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self._num_tokens = self._num_tokens.to(device)

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, K, T, D] behind what is held; all slots, empty ones too. IndexError past the end."""
        if self.keys is None or self.values is None:
            batch, heads, _, width = keys.shape
            self.early_initialization(batch, heads, width, keys.dtype, keys.device)
        assert self.keys is not None
        assert self.values is not None
        slots = torch.arange(keys.shape[-2], device=keys.device) + self._num_tokens
        self.keys.index_copy_(2, slots, keys)
        self.values.index_copy_(2, slots, values)
        self._num_tokens.add_(keys.shape[-2])
        return self.keys, self.values

    def get_seq_length(self) -> int | Tensor:
        """Tokens held: a tensor, as in HF, once there are any."""
        return self._num_tokens if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All slots, from the first."""
        return self.max_cache_len, 0

    def get_max_length(self) -> int:
        """The size it was made with."""
        return self.max_cache_len

    def reset(self) -> None:
        """Zero the slots where they are."""
        self._each(lambda x: x.zero_())
        self._num_tokens.zero_()

    def crop(self, max_length: int) -> None:
        """Static slots cannot be given back."""
        raise ValueError("a static cache cannot be cropped; use a DynamicCache, or reset() this one")


class Cache:
    """One layer object a decoder layer, in `layers`. Not subscriptable: read `cache.layers[i].keys`."""

    def __init__(self, layers: list[DynamicLayer] | list[StaticLayer]) -> None:
        self.layers = layers

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: object) -> None:
        raise TypeError(f"{type(self).__name__} is not subscriptable; read .layers[i].keys and .layers[i].values")

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        cache_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Append [B, K, T, D] to a layer; what its attention is to read.

        `cache_kwargs` changes nothing, as in 5.23: new tokens go behind what is held.
        """
        return self.layers[layer_idx].update(key_states, value_states)

    def early_initialization(
        self, batch_size: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Make every layer's tensors before the first update, but for those that has been."""
        for layer in self.layers:
            if not layer.is_initialized:
                layer.early_initialization(batch_size, num_heads, head_dim, dtype, device)

    def get_seq_length(self, layer_idx: int = 0) -> int | Tensor:
        """Tokens held by a layer."""
        return self.layers[layer_idx].get_seq_length() if layer_idx < len(self.layers) else 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Slots that a layer's attention will see with `query_length` new tokens, and the position of the first."""
        return (
            self.layers[layer_idx].get_mask_sizes(query_length) if layer_idx < len(self.layers) else (query_length, 0)
        )

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Most tokens, of any layer; -1 where there is no bound."""
        return self.layers[0].get_max_length() if self.layers else -1

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """The same under its name of 5.0.0rc1."""
        return self.get_max_length()

    @property
    def is_initialized(self) -> bool:
        """Whether every layer has tensors."""
        return bool(self.layers) and all(layer.is_initialized for layer in self.layers)

    @property
    def batch_size(self) -> int:
        """Rows there are slots for; -1, as in HF, where no slots have been taken: a cache that grows has none."""
        return -1

    @property
    def max_batch_size(self) -> int:
        """The same under its name of 5.0.0rc1."""
        return self.batch_size

    @property
    def is_compileable(self) -> bool:
        """Whether its memory stays where it is, so that a compiled graph may refer to it."""
        return bool(self.layers) and all(layer.is_compileable for layer in self.layers)

    @property
    def is_sliding(self) -> list[bool]:
        """Whether each layer forgets what is far behind: none does."""
        return [layer.is_sliding for layer in self.layers]

    def reset(self) -> None:
        """Forget every token."""
        for layer in self.layers:
            layer.reset()

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` tokens of every layer, or drop the last -`max_length`."""
        for layer in self.layers:
            layer.crop(max_length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make row i what row beam_idx[i] was."""
        self._each(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times, copies side by side."""
        self._each(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self._each(lambda x: x[indices, ...])

    def _each(self, change: Any) -> None:
        for layer in self.layers:
            if layer.get_seq_length() > 0:
                layer._each(change)


class DynamicCache(Cache):
    """A cache that grows. Makes its layers as they come where no config says how many there are.

    `ddp_cache_data`, under HF's name, is what it holds from the start: keys and values [B, K, S, D] of each layer, as
    iterating over a cache gives them.
    """

    layers: list[DynamicLayer]

    def __init__(
        self, ddp_cache_data: Iterable[tuple[Tensor | None, ...]] | None = None, config: GlmConfig | None = None
    ) -> None:
        super().__init__([DynamicLayer() for _ in range(config.num_hidden_layers if config else 0)])
        for layer, (keys, values, *_) in enumerate(ddp_cache_data or ()):
            if keys is not None and values is not None:
                self.update(keys, values, layer)

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        cache_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Append [B, K, T, D] to a layer; everything it holds."""
        while len(self.layers) <= layer_idx:
            self.layers.append(DynamicLayer())
        return super().update(key_states, value_states, layer_idx, cache_kwargs)

    def __iter__(self) -> Iterator[tuple[Tensor | None, Tensor | None, None]]:
        return iter([(layer.keys, layer.values, None) for layer in self.layers])


class StaticCache(Cache):
    """A cache of `max_cache_len` slots a layer, for graphs that want the same memory every time.

    The memory is taken at the first update; at once where `max_batch_size`, `device` and `dtype` are all given.
    """

    layers: list[StaticLayer]

    def __init__(
        self,
        config: GlmConfig,
        max_cache_len: int,
        *,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__([StaticLayer(max_cache_len) for _ in range(config.num_hidden_layers)])
        if max_batch_size is not None and device is not None and dtype is not None:
            self.early_initialization(
                max_batch_size, config.num_key_value_heads, config.head_dim, dtype, torch.device(device)
            )

    @property
    def batch_size(self) -> int:
        """Rows there are slots for; -1 before the memory is taken."""
        keys = self.layers[0].keys
        return -1 if keys is None else keys.shape[0]

    @property
    def max_cache_len(self) -> int:
        """Slots of a layer."""
        return self.layers[0].max_cache_len
