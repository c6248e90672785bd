"""The caches by themselves, on tensors one can read."""

import pytest
import torch
from torch import Tensor

from glm_cluster.model.cache import Cache, DynamicCache, StaticCache
from glm_cluster.model.config import GlmConfig

CONFIG = GlmConfig(num_hidden_layers=2)


def tokens(*values: float, rows: int = 1) -> Tensor:
    """[rows, 1, tokens, 1]; row r holds the values plus 10 r."""
    return torch.tensor([[[[v + 10 * row] for v in values]] for row in range(rows)])


def filled(*values: float, rows: int = 1) -> DynamicCache:
    cache = DynamicCache(config=CONFIG)
    for layer in range(2):
        cache.update(tokens(*values, rows=rows), -tokens(*values, rows=rows), layer)
    return cache


def keys(cache: Cache, layer: int = 0) -> list[list[float]]:
    held = cache.layers[layer].keys
    assert held is not None
    values = cache.layers[layer].values
    assert values is not None
    assert torch.equal(values, -held)
    return held[:, 0, :, 0].tolist()


def test_a_dynamic_cache_appends() -> None:
    cache = filled(1, 2)
    seen, _ = cache.update(tokens(3), -tokens(3), 0)
    assert seen.flatten().tolist() == [1, 2, 3]
    assert (cache.get_seq_length(), cache.get_seq_length(1), cache.get_seq_length(2)) == (3, 2, 0)
    assert (cache.get_mask_sizes(4, 0), cache.get_mask_sizes(4, 1)) == ((7, 0), (6, 0))
    assert (cache.get_mask_sizes(4, 2), cache.get_max_length(), cache.get_max_cache_shape()) == ((4, 0), -1, -1)


def test_a_cache_made_of_anothers_layers() -> None:
    """How keys and values that were taken out of a cache become one again."""
    again = DynamicCache(filled(1, 2, rows=2), config=CONFIG)
    assert keys(again) == keys(again, 1) == [[1, 2], [11, 12]]
    pairs = [(layer.keys, layer.values) for layer in again.layers]
    assert len(DynamicCache(pairs)) == 2
    assert DynamicCache([(None, None)]).get_seq_length() == 0


def test_what_was_given_is_not_written_to() -> None:
    given = tokens(1, 2)
    cache = DynamicCache()
    cache.update(given, -given, 0)
    cache.update(tokens(3), -tokens(3), 0)
    assert given.flatten().tolist() == [1, 2]


@pytest.mark.parametrize(
    ("length", "kept"), [(2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3]), (-1, [1, 2]), (-3, []), (-9, [])]
)
def test_crop(length: int, kept: list[float]) -> None:
    cache = filled(1, 2, 3)
    cache.crop(length)
    assert keys(cache) == keys(cache, 1) == [kept]
    assert cache.get_seq_length() == len(kept)


def test_a_length_of_nothing_is_nothing() -> None:
    """5.0.0rc1's 0 is the length to keep; in 5.23 it would be the number to remove."""
    cache = filled(1, 2, 3)
    cache.crop(0)
    assert keys(cache) == [[]]
    assert cache.get_seq_length() == 0


def test_rows_are_reordered_repeated_and_selected() -> None:
    cache = filled(1, 2, rows=3)
    cache.reorder_cache(torch.tensor([2, 2, 0]))
    assert keys(cache) == keys(cache, 1) == [[21, 22], [21, 22], [1, 2]]
    cache.batch_select_indices(torch.tensor([2, 0]))
    assert keys(cache) == [[1, 2], [21, 22]]
    cache.batch_repeat_interleave(2)
    assert keys(cache) == [[1, 2], [1, 2], [21, 22], [21, 22]]


def test_an_empty_cache_has_no_rows_to_change() -> None:
    cache = DynamicCache(config=CONFIG)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)
    cache.crop(3)
    cache.reset()
    assert (len(cache), cache.get_seq_length(), cache.is_initialized) == (2, 0, False)


def test_a_static_cache_writes_in_place() -> None:
    cache = StaticCache(CONFIG, 5)
    seen, _ = cache.update(tokens(1, 2), -tokens(1, 2), 0)
    assert seen.flatten().tolist() == [1, 2, 0, 0, 0]
    again, _ = cache.update(tokens(3), -tokens(3), 0)
    assert again is seen
    assert seen.flatten().tolist() == [1, 2, 3, 0, 0]
    assert (int(cache.get_seq_length()), cache.get_mask_sizes(1, 0), cache.get_max_length()) == (3, (5, 0), 5)


WIDE = GlmConfig(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8)


def test_a_static_cache_takes_its_memory_at_once_where_all_is_known() -> None:
    cache = StaticCache(config=WIDE, max_cache_len=5, max_batch_size=3, device="cpu", dtype=torch.bfloat16)
    assert (cache.is_initialized, cache.batch_size, cache.max_batch_size, cache.max_cache_len) == (True, 3, 3, 5)
    held = cache.layers[1].keys
    assert held is not None
    assert (held.shape, held.dtype, int(cache.get_seq_length())) == ((3, 2, 5, 8), torch.bfloat16, 0)
    new = torch.ones(3, 2, 2, 8, dtype=torch.bfloat16)
    seen, _ = cache.update(new, new, 1)
    assert seen is held
    assert held[0, 0, :, 0].tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("given", [{}, {"max_batch_size": 3}, {"max_batch_size": 3, "dtype": torch.float32}])
def test_a_static_cache_waits_where_something_is_not_known(given: dict) -> None:
    cache = StaticCache(WIDE, 5, **given)
    assert (cache.is_initialized, cache.batch_size) == (False, -1)


def test_what_is_held_is_not_initialized_again() -> None:
    cache = filled(1, 2)
    cache.early_initialization(1, 1, 1, torch.float32, torch.device("cpu"))
    assert keys(cache) == keys(cache, 1) == [[1, 2]]


def test_a_full_static_cache_refuses() -> None:
    cache = StaticCache(CONFIG, 3)
    cache.update(tokens(1, 2), -tokens(1, 2), 0)
    with pytest.raises(IndexError):
        cache.update(tokens(3, 4), -tokens(3, 4), 0)
    assert int(cache.get_seq_length()) == 2


def test_a_static_cache_cannot_be_cropped() -> None:
    with pytest.raises(ValueError, match="use a DynamicCache"):
        StaticCache(CONFIG, 3).crop(-1)
