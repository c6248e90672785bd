"""Names, order and defaults of the page against 5.0.0rc1's: forwards, configs, caches, outputs."""

import inspect
from typing import Any

import pytest
import torch
import transformers
from support.parity import OURS, SMALL, Pairs, Side, assert_same
from support.positions import HEAD, Both
from support.scenarios import IDS_BT, held
from torch import Tensor

import glm_cluster.model
from glm_cluster.model.cache import DynamicCache, StaticCache
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.rope import frequencies

PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
ALSO = {"output_hidden_states", "output_attentions", "return_dict"}  # behind their `**kwargs`


def placed(function: Any) -> list[tuple[str, Any]]:
    """Arguments that have a place, with their defaults, without self."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.default) for p in parameters if p.kind in PLACED][1:]


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("family", ["Glm", "Glm4"])
def test_forward_arguments(family: str, kind: str) -> None:
    theirs = placed(getattr(transformers, family + kind).forward)
    assert placed(OURS[kind].forward) == theirs
    ours = inspect.signature(OURS[kind].forward).parameters
    assert ours.keys() >= ALSO | {"cache_position"}
    assert all(ours[name].default is None for name in ALSO)


def test_classes_of_the_page_are_importable() -> None:
    for kind in OURS:
        assert getattr(glm_cluster.model, f"Glm{kind}") is OURS[kind]
    for name in ("GlmConfig", "DynamicCache", "StaticCache", "GenerationConfig"):
        assert name in glm_cluster.model.__all__


@pytest.mark.parametrize("family", ["glm", "glm4"])
def test_config_keys_and_defaults(family: str) -> None:
    theirs_class = {"glm": transformers.GlmConfig, "glm4": transformers.Glm4Config}[family]
    ours, theirs = GlmConfig(model_type=family), theirs_class()
    for name, default in placed(theirs_class.__init__):
        value = getattr(theirs, name)
        assert getattr(ours, name) == (dict(value) if isinstance(value, dict) else value), name
        assert default is None or default == value, name


def test_methods_of_resizing_and_saving() -> None:
    theirs = transformers.GlmForCausalLM
    assert placed(OURS["ForCausalLM"].resize_token_embeddings) == placed(theirs.resize_token_embeddings)
    save = inspect.signature(theirs.save_pretrained).parameters
    ours = inspect.signature(OURS["ForCausalLM"].save_pretrained).parameters
    assert ours["max_shard_size"].default == save["max_shard_size"].default


PUBLIC = (
    "update",
    "early_initialization",
    "get_seq_length",
    "get_max_cache_shape",
    "crop",
    "reorder_cache",
    "batch_repeat_interleave",
    "batch_select_indices",
    "reset",
)
TOLD = ("max_batch_size", "is_compileable", "is_initialized", "is_sliding")


@pytest.mark.parametrize("name", PUBLIC)
def test_cache_methods(name: str) -> None:
    assert placed(getattr(DynamicCache, name)) == placed(getattr(transformers.DynamicCache, name))
    assert hasattr(StaticCache, name)


def test_what_a_static_cache_tells(pairs: Pairs) -> None:
    def ask(side: Side) -> list[object]:
        cache = side.static_cache(30)
        side.model(IDS_BT, past_key_values=cache)
        return [getattr(cache, name) for name in (*TOLD, "max_cache_len")]

    ours, theirs = pairs().both(ask)
    assert ours == theirs


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_caches_that_are_initialized_early(pairs: Pairs, kind: str) -> None:
    def ask(side: Side) -> list[Tensor]:
        cache = side.dynamic_cache() if kind == "dynamic" else side.static_cache(30)
        heads, width = side.model.config.num_key_value_heads, side.model.config.head_dim
        cache.early_initialization(IDS_BT.shape[0], heads, width, torch.float32, torch.device("cpu"))
        assert cache.is_initialized
        return [side.model(IDS_BT, past_key_values=cache).logits, *held(cache)]

    assert_same(*pairs().both(ask), 1e-5)


def test_yarn_of_glm_4_0414_stretches_nothing_here() -> None:
    """5.0.0rc1 puts 32768 positions / 32768 in the place of the factor; ours is 5.23's, which is 4."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    both = Both(**HEAD, max_position_embeddings=32768, rope_scaling=yarn)
    plain = frequencies(GlmConfig(**HEAD))[0]
    assert torch.equal(both.theirs.inv_freq, plain)
    assert both.ours.inv_freq[-1] == plain[-1] / 4


def test_how_caches_are_made() -> None:
    """Theirs take ways of offloading as well."""
    for ours, theirs in ((DynamicCache, transformers.DynamicCache), (StaticCache, transformers.StaticCache)):
        assert placed(ours.__init__) == [a for a in placed(theirs.__init__) if not a[0].startswith("offload")]


def after(change: Any) -> Any:
    def ask(side: Side) -> list[Tensor]:
        cache = side.model(IDS_BT[:, :11]).past_key_values
        change(cache)
        kept = held(cache)
        return [
            torch.tensor(cache.get_seq_length()),
            *kept,
            *held(side.model(IDS_BT[:, 11:], past_key_values=cache)[1]),
        ]

    return ask


@pytest.mark.parametrize("length", [8, 11, 30, -3, 1])
def test_crop_by_length_and_by_number(pairs: Pairs, length: int) -> None:
    """Positive: the length to keep. Negative: how many go."""
    assert_same(*pairs().both(after(lambda cache: cache.crop(length))), 1e-5)


def test_reordered_caches(pairs: Pairs) -> None:
    assert_same(*pairs().both(after(lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])))), 1e-5)


@pytest.mark.parametrize("kind", OURS)
def test_fields_of_outputs(pairs: Pairs, kind: str) -> None:
    everything = {"output_hidden_states": True, "output_attentions": True}
    ours, theirs = pairs(kind, attn="eager").both(lambda side: side.model(IDS_BT, **everything))
    assert list(ours.keys()) == list(theirs.keys())
    assert_same(ours.hidden_states, theirs.hidden_states)
    assert_same(ours.attentions, theirs.attentions)
    assert_same([ours[0]], [theirs.to_tuple()[0]])


def test_cache_position_is_taken(pairs: Pairs) -> None:
    def ask(side: Side) -> list[Tensor]:
        first = side.model(IDS_BT[:, :9], cache_position=torch.arange(9))
        second = side.model(IDS_BT[:, 9:], past_key_values=first.past_key_values, cache_position=torch.arange(9, 19))
        return [first.logits, second.logits]

    assert_same(*pairs().both(ask), 1e-5)


@pytest.mark.parametrize("kind", OURS)
def test_errors_of_the_page(pairs: Pairs, kind: str) -> None:
    pair = pairs(kind)
    for side in (pair.ours, pair.theirs):
        with pytest.raises(ValueError, match="You must specify exactly one of input_ids or inputs_embeds"):
            side.model()
        with pytest.raises(AttributeError):
            side.model(IDS_BT, past_key_values=((torch.zeros(1), torch.zeros(1)),))


def test_a_padding_id_without_a_row() -> None:
    keys = {**SMALL, "pad_token_id": 151329}
    for make in (
        lambda: transformers.GlmModel(transformers.GlmConfig(**keys)),
        lambda: OURS["Model"](GlmConfig(**keys)),
    ):
        with pytest.raises(AssertionError, match="Padding_idx must be within num_embeddings"):
            make()
