"""Caches against transformers': what they hold, what their methods do to it, and what is computed from it afterwards.

Bound: every bit. Where the two versions of transformers differ (`crop`), each version's way is named.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.parity import Pair, Pairs, Side, assert_same, ids
from support.scenarios import held, in_chunks

PROMPT, NEXT = ids(3, 11), ids(3, 4, seed=8)


@pytest.fixture(scope="module")
def pair(pairs: Pairs) -> Pair:
    return pairs()


def after(change: Callable[[Any], object], next_rows: int = 3) -> Callable[[Side], list[torch.Tensor]]:
    """A prompt, a change of its cache, and a chunk after it."""

    def ask(side: Side) -> list[torch.Tensor]:
        cache = side.model(PROMPT).past_key_values
        change(cache)
        kept = held(cache)
        ids_BT = NEXT[:1].expand(next_rows, -1)
        return [*kept, side.model(ids_BT, past_key_values=cache).logits, *held(cache)]

    return ask


CHANGES: dict[str, tuple[Callable[[Any], object], int]] = {
    "nothing": (lambda cache: None, 3),
    "crop(-3): the last 3 go": (lambda cache: cache.crop(-3), 3),
    "reorder": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), 3),
    "repeat": (lambda cache: cache.batch_repeat_interleave(2), 6),
    "select": (lambda cache: cache.batch_select_indices(torch.tensor([2, 0])), 2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_methods_of_the_dynamic_cache(pair: Pair, name: str) -> None:
    change, rows = CHANGES[name]
    assert_same(*pair.both(after(change, rows)))


def test_a_positive_crop_is_the_length_to_keep(pair: Pair) -> None:
    """5.0.0rc1's way, which 5.23 refuses; there it is asked for by a negative number."""
    with torch.no_grad():
        ours = after(lambda cache: cache.crop(8))(pair.ours)
        theirs = after(lambda cache: cache.crop(8 - PROMPT.shape[1]))(pair.theirs)
    assert_same(ours, theirs)


def test_a_reset_dynamic_cache_is_as_new(pair: Pair) -> None:
    def ask(side: Side) -> list[torch.Tensor]:
        cache = side.model(PROMPT).past_key_values
        cache.reset()
        assert cache.get_seq_length() == 0
        return [side.model(NEXT, past_key_values=cache).logits, *held(cache)]

    assert_same(*pair.both(ask))


def test_a_reset_static_cache_keeps_its_memory(pair: Pair) -> None:
    def ask(side: Side) -> list[torch.Tensor]:
        cache = side.static_cache(16)
        side.model(PROMPT, past_key_values=cache)
        memory = cache.layers[0].keys.data_ptr()
        cache.reset()
        assert int(cache.get_seq_length()) == 0
        assert not cache.layers[1].values.any()
        logits = side.model(NEXT, past_key_values=cache).logits
        assert cache.layers[0].keys.data_ptr() == memory
        return [logits, *held(cache)]

    assert_same(*pair.both(ask))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_what_caches_are_for_a_compiler(pair: Pair, kind: str) -> None:
    def ask(side: Side) -> list[Any]:
        cache = side.dynamic_cache() if kind == "dynamic" else side.static_cache(30)
        side.model(PROMPT, past_key_values=cache)
        return [cache.is_compileable, cache.is_sliding, cache.is_initialized, cache.batch_size]

    ours, theirs = pair.both(ask)
    assert ours == theirs


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_slots_that_a_mask_is_made_for(pair: Pair, kind: str) -> None:
    def ask(side: Side) -> list[Any]:
        cache = side.dynamic_cache() if kind == "dynamic" else side.static_cache(30)
        told = [cache.get_mask_sizes(4, layer) for layer in (0, 1)]
        side.model(PROMPT, past_key_values=cache)
        return [*told, cache.get_mask_sizes(4, 1), side.caches.DynamicCache().get_mask_sizes(4, 3)]

    ours, theirs = pair.both(ask)
    assert ours == theirs


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_caches_that_are_initialized_early(pair: Pair, kind: str) -> None:
    def ask(side: Side) -> list[Any]:
        cache = side.dynamic_cache() if kind == "dynamic" else side.static_cache(16)
        cache.early_initialization(3, 2, 32, torch.float32, torch.device("cpu"))
        assert cache.is_initialized
        assert int(cache.get_seq_length()) == 0
        memory = cache.layers[0].keys.data_ptr()
        logits = side.model(PROMPT, past_key_values=cache).logits
        assert kind == "dynamic" or cache.layers[0].keys.data_ptr() == memory
        return [logits, *held(cache), side.model(NEXT, past_key_values=cache).logits]

    assert_same(*pair.both(ask))


def test_keywords_for_a_layer_are_taken(pair: Pair) -> None:
    """5.0.0rc1's models hand positions over; tokens go behind what is held, where those positions are."""

    def ask(side: Side) -> list[torch.Tensor]:
        cache = side.static_cache(6)
        new = torch.arange(24.0).reshape(1, 2, 3, 4)
        return list(cache.update(new, -new, 0, {"cache_position": torch.arange(3)}))

    assert_same(*pair.both(ask))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_lengths_that_caches_tell(pair: Pair, kind: str) -> None:
    def ask(side: Side) -> list[Any]:
        cache = side.dynamic_cache() if kind == "dynamic" else side.static_cache(30)
        told = [len(cache), cache.get_seq_length(), cache.get_max_length(), cache.is_initialized]
        side.model(PROMPT, past_key_values=cache)
        told += [int(cache.get_seq_length()), int(cache.get_seq_length(1)), cache.get_seq_length(9)]
        told += [cache.is_initialized, isinstance(cache.get_seq_length(), torch.Tensor), cache.get_max_length()]
        return told

    ours, theirs = pair.both(ask)
    assert ours == theirs


def test_a_cache_made_without_a_config_grows_its_layers(pair: Pair) -> None:
    assert_same(*pair.both(lambda side: in_chunks(side, side.caches.DynamicCache())))


def test_a_dynamic_cache_is_walked_layer_by_layer(pair: Pair) -> None:
    def ask(side: Side) -> list[torch.Tensor]:
        return [t for keys, values, *_ in side.model(PROMPT).past_key_values for t in (keys, values)]

    assert_same(*pair.both(ask))


def test_a_cache_is_made_of_anothers_tensors(pair: Pair) -> None:
    """What replaced tuples of tensors: `DynamicCache(iterable)`."""

    def ask(side: Side) -> list[torch.Tensor]:
        first = side.model(PROMPT).past_key_values
        cache = side.caches.DynamicCache([(layer.keys, layer.values) for layer in first.layers])
        return [side.model(NEXT, past_key_values=cache).logits, *held(cache)]

    assert_same(*pair.both(ask))


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_full_static_cache_raises_index_error(pairs: Pairs, attn: str) -> None:
    pair = pairs(attn=attn)
    for side in (pair.ours, pair.theirs):
        cache = side.static_cache(12)
        side.model(PROMPT, past_key_values=cache)
        with pytest.raises(IndexError):
            side.model(NEXT, past_key_values=cache)


def test_caches_are_not_subscriptable(pair: Pair) -> None:
    for side in (pair.ours, pair.theirs):
        with pytest.raises(TypeError, match="not subscriptable"):
            side.model(PROMPT).past_key_values[0]


def test_a_tuple_of_tensors_is_no_cache(pair: Pair) -> None:
    legacy = tuple((torch.zeros(3, 2, 5, 32), torch.zeros(3, 2, 5, 32)) for _ in range(2))
    for side in (pair.ours, pair.theirs):
        with pytest.raises(AttributeError, match="get_seq_length"):
            side.model(PROMPT, past_key_values=legacy)


@pytest.mark.parametrize("use_cache", [None, True, False])
def test_a_cache_comes_back_unless_refused(pair: Pair, use_cache: bool | None) -> None:
    ours, theirs = pair.both(lambda side: side.model(PROMPT, use_cache=use_cache).past_key_values is None)
    assert ours == theirs == (use_cache is False)


def test_a_given_cache_is_used_though_use_cache_is_false(pair: Pair) -> None:
    def ask(side: Side) -> list[torch.Tensor]:
        cache = side.dynamic_cache()
        output = side.model(PROMPT, past_key_values=cache, use_cache=False)
        assert output.past_key_values is cache
        return [output.logits, *held(cache)]

    assert_same(*pair.both(ask))


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("slots", [12, 30])
def test_one_query_without_a_mask_does_not_see_empty_slots(pairs: Pairs, attn: str, slots: int) -> None:
    """Nor does the last one, into a cache that is full then, take another kernel than HF's."""
    pair = pairs(attn=attn, initializer_range=0.05)  # scores about 0, so that slots of zeros would get their share

    def ask(side: Side) -> list[torch.Tensor]:
        given = []
        for cache in (side.static_cache(slots), side.dynamic_cache()):
            side.model(PROMPT, past_key_values=cache)
            given.append(side.model(NEXT[:, :1], past_key_values=cache).logits)
        return given

    ours, theirs = pair.both(ask)
    assert_same(ours, theirs)
    assert_same([ours[0]], [ours[1]], 1e-5)


def test_cached_chunks_stay_close_to_the_whole(pair: Pair) -> None:
    """A chunk after a cache is masked: without the mask its first rows would see the future (error of order 1)."""
    both_BT = torch.cat([PROMPT, NEXT], dim=1)
    with torch.no_grad():
        first = pair.ours.model(PROMPT)
        second = pair.ours.model(NEXT, past_key_values=first.past_key_values)
        whole = pair.ours.model(both_BT).logits
    assert_same([torch.cat([first.logits, second.logits], dim=1)], [whole], 1e-5)
