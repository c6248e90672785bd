"""What a forward pass returns and refuses, against transformers: fields, places, keys, states, weights, errors.

Bound: every bit.
"""

from typing import Any

import pytest
import torch
from support.parity import SMALL, Pairs, Side, assert_same
from support.scenarios import IDS_BT, LEFT_BT, padded
from torch import Tensor
from transformers import GlmConfig as HfConfig
from transformers import GlmModel as HfModel

from glm_cluster.model.config import GlmConfig
from glm_cluster.model.glm import GlmModel

KINDS: dict[str, Tensor | None] = {
    "Model": None,
    "ForCausalLM": IDS_BT,
    "ForSequenceClassification": torch.tensor([0, 1, 1]),
    "ForTokenClassification": IDS_BT % 2,
}
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}


def flat(value: Any) -> list[Tensor]:
    """The tensors of a field: one, a tuple's, or a cache's."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in flat(part)]
    return [tensor for layer in value.layers for tensor in (layer.keys, layer.values)]


def call(side: Side, kind: str, **options: Any) -> Any:
    labels = KINDS[kind]
    return side.model(IDS_BT, **({} if labels is None else {"labels": labels}), **options)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, EVERYTHING], ids=["usual", "no cache", "everything"])
@pytest.mark.parametrize("kind", KINDS)
def test_fields_by_name_key_and_place(pairs: Pairs, kind: str, options: dict[str, bool]) -> None:
    ours, theirs = pairs(kind, attn="eager").both(lambda side: call(side, kind, **options))
    assert list(ours.keys()) == list(theirs.keys()) == list(ours)
    assert len(ours) == len(theirs)
    for place, name in enumerate(theirs.keys()):
        expected = flat(theirs[name])
        for way in (ours[name], getattr(ours, name), ours[place], ours.to_tuple()[place], dict(ours.items())[name]):
            assert_same(flat(way), expected, name=name)
    assert len(ours[:2]) == len(theirs[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_tuple_where_it_is_asked_for(pairs: Pairs, kind: str) -> None:
    pair = pairs(kind, attn="eager")
    ours, theirs = pair.both(lambda side: call(side, kind, return_dict=False, **EVERYTHING))
    assert isinstance(ours, tuple)
    assert isinstance(theirs, tuple)
    assert_same(flat(ours), flat(theirs))


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_may_ask_for_it_all(pairs: Pairs, kind: str) -> None:
    """HF's classifiers trip over a config without `return_dict`, so it is asked by arguments."""
    pair = pairs(kind, attn="eager")
    model = type(pair.ours.model)(pair.ours.model.config.replace(return_dict=False, **EVERYTHING)).eval()
    model.load_state_dict(pair.ours.model.state_dict())
    with torch.no_grad():
        ours = call(Side(model=model, caches=None), kind)
        theirs = call(pair.theirs, kind, return_dict=False, **EVERYTHING)
    assert isinstance(ours, tuple)
    assert_same(flat(ours), flat(theirs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_states_and_weights(pairs: Pairs, dtype: str) -> None:
    """Layers + 1 states, the last after the final norm; a row of weights sums to 1 and sees no padding."""
    pair = pairs("Model", attn="eager", dtype=dtype)
    ours, theirs = pair.both(lambda side: side.model(padded(LEFT_BT), attention_mask=LEFT_BT, **EVERYTHING))
    assert_same(ours.hidden_states, theirs.hidden_states)
    assert_same(ours.attentions, theirs.attentions)
    assert torch.equal(ours.hidden_states[-1], ours.last_hidden_state)
    assert (len(ours.hidden_states), len(ours.attentions)) == (3, 2)
    assert ours.attentions[0].shape == (3, 4, 19, 19)
    assert not ours.attentions[1][2, :, -1, :14].any()


def test_weights_of_a_chunk_after_a_cache(pairs: Pairs) -> None:
    def ask(side: Side) -> tuple[Tensor, ...]:
        cache = side.model(IDS_BT[:, :9]).past_key_values
        return side.model(IDS_BT[:, 9:], past_key_values=cache, output_attentions=True).attentions

    ours, theirs = pairs(attn="eager").both(ask)
    assert ours[0].shape == (3, 4, 10, 19)
    assert_same(ours, theirs)


def test_weights_under_sdpa_are_computed_eagerly(pairs: Pairs) -> None:
    """A difference on purpose: SDPA gives none, and HF then returns none."""
    with torch.no_grad():
        ours = pairs(attn="sdpa").ours.model(IDS_BT, output_attentions=True)
        eager = pairs(attn="eager").theirs.model(IDS_BT, output_attentions=True)
    assert_same([ours.logits, *ours.attentions], [eager.logits, *eager.attentions])
    assert not any(
        x is not None for x in pairs(attn="sdpa").theirs.model(IDS_BT, output_attentions=True).attentions or ()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", ["neither", "both"])
def test_one_of_ids_and_embeddings(pairs: Pairs, kind: str, given: str) -> None:
    x_BTH = torch.zeros(3, 19, 64)
    arguments = {} if given == "neither" else {"input_ids": IDS_BT, "inputs_embeds": x_BTH}
    pair = pairs(kind)
    for model in (pair.ours.model, pair.theirs.model):
        with pytest.raises(ValueError, match=r"^You must specify exactly one of input_ids or inputs_embeds$"):
            model(**arguments)


def test_cache_position_counts_on_or_is_refused(pairs: Pairs) -> None:
    """5.0.0rc1's argument; 5.23 has it no more."""
    model = pairs().ours.model
    with torch.no_grad():
        first = model(IDS_BT[:, :9], cache_position=torch.arange(9))
        second = model(IDS_BT[:, 9:], past_key_values=first.past_key_values, cache_position=torch.arange(9, 19))
        again = model(IDS_BT[:, :9])
        assert_same([second.logits], [model(IDS_BT[:, 9:], past_key_values=again.past_key_values).logits])
    with pytest.raises(ValueError, match=r"must count on from what the cache holds \(19"):
        model(IDS_BT[:, :1], past_key_values=first.past_key_values, cache_position=torch.tensor([4]))


def test_a_padding_id_needs_a_row() -> None:
    """GLM-4's default of 151329 meets a small vocabulary; the same class and words as torch's."""
    keys = {**SMALL, "pad_token_id": 151329}
    with pytest.raises(AssertionError, match=r"^Padding_idx must be within num_embeddings"):
        HfModel(HfConfig(**keys))
    with pytest.raises(AssertionError, match=r"^Padding_idx must be within num_embeddings"):
        GlmModel(GlmConfig(**keys))


def test_the_whole_signature_by_place(pairs: Pairs) -> None:
    """Arguments by HF's places, without names."""

    def ask(side: Side) -> list[Tensor]:
        output = side.model(padded(LEFT_BT), LEFT_BT, None, side.dynamic_cache(), None, IDS_BT, True)
        return [output.loss, output.logits]

    assert_same(*pairs().both(ask))
