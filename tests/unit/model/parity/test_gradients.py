"""Gradients of every head's loss against transformers: the classes are trainable.

Bound: 1e-5 relative to a parameter's largest gradient in fp32 (sums over tokens run in another order where a tensor
lies differently in memory), every bit where the order is the same.
"""

from typing import Any

import pytest
import torch
from support.parity import EAGER, GLM4, MULTI_HEAD, NO_BIAS, ROPES, TIED, Pair, Pairs, Side, assert_same
from support.scenarios import IDS_BT, LEFT_BT, RIGHT_BT, padded
from torch import Tensor

BOUND = 1e-5
ZEROS = {"classifier_dropout": 0.0}
ROWS_B, TOKENS_BT = torch.tensor([1, 0, 1]), (IDS_BT % 2).masked_fill(RIGHT_BT == 0, -100)
NEXT_BT = IDS_BT.masked_fill(RIGHT_BT == 0, -100)
GRID: dict[str, tuple[str, dict[str, Any], Tensor]] = {
    "causal": ("ForCausalLM", {}, NEXT_BT),
    "causal, tied, eager": ("ForCausalLM", TIED | NO_BIAS | EAGER, NEXT_BT),
    "causal, glm4, yarn": ("ForCausalLM", GLM4 | ROPES["yarn"], NEXT_BT),
    "causal, multi-head, full": ("ForCausalLM", MULTI_HEAD | ROPES["full"] | EAGER, NEXT_BT),
    "sequence, single": ("ForSequenceClassification", {}, ROWS_B),
    "sequence, regression": ("ForSequenceClassification", {"num_labels": 1}, ROWS_B.float()),
    "sequence, multi": ("ForSequenceClassification", GLM4 | EAGER, torch.stack([ROWS_B, 1 - ROWS_B], 1).float()),
    "token": ("ForTokenClassification", ZEROS, TOKENS_BT),
    "token, glm4": ("ForTokenClassification", ZEROS | GLM4, TOKENS_BT),
}


def gradients(side: Side, labels: Tensor, mask_BT: Tensor | None = RIGHT_BT) -> dict[str, Tensor]:
    """Of a training step's loss, for every parameter."""
    side.model.train()
    side.model.zero_grad()
    rows_BT = IDS_BT if mask_BT is None else padded(mask_BT)
    side.model(rows_BT, attention_mask=mask_BT, labels=labels, use_cache=False).loss.backward()
    side.model.eval()
    return {name: parameter.grad for name, parameter in side.model.named_parameters()}


def assert_same_gradients(pair: Pair, *arguments: Any) -> dict[str, Tensor]:
    ours, theirs = gradients(pair.ours, *arguments), gradients(pair.theirs, *arguments)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert_same([ours[name]], [gradient], BOUND, name=name)
    return ours


@pytest.mark.parametrize("name", GRID)
def test_of_every_heads_loss(pairs: Pairs, name: str) -> None:
    kind, options, labels = GRID[name]
    given = assert_same_gradients(pairs(kind, **options), labels)
    assert all(gradient.any() for gradient in given.values())


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_without_padding(pairs: Pairs, attn: str) -> None:
    """SDPA's causal flag takes another kernel than a mask."""
    assert_same_gradients(pairs(attn=attn), IDS_BT, None)


def test_the_padding_row_gets_none(pairs: Pairs) -> None:
    """Though left padding is seen by the rows' own padding queries, which the loss counts here."""
    given = assert_same_gradients(pairs(), IDS_BT, LEFT_BT)
    assert not given["model.embed_tokens.weight"][0].any()


def test_a_tied_padding_row_gets_the_heads_alone(pairs: Pairs) -> None:
    given = assert_same_gradients(pairs(**TIED), IDS_BT, LEFT_BT)
    assert given["model.embed_tokens.weight"][0].any()


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_attention_dropout_drops_the_same_weights(pairs: Pairs, attn: str) -> None:
    """With a seed; in eval mode nothing is dropped."""
    pair = pairs(attn=attn, attention_dropout=0.2)

    def ask(side: Side) -> list[Tensor]:
        torch.manual_seed(11)
        logits = side.model.train()(IDS_BT, use_cache=False).logits
        side.model.eval()
        return [logits, side.model(IDS_BT).logits]

    ours, theirs = pair.both(ask)
    assert_same(ours, theirs)
    assert not torch.allclose(ours[0], ours[1], rtol=1e-2)


def test_gradients_flow_into_given_embeddings(pairs: Pairs) -> None:
    def ask(side: Side) -> Tensor:
        x_BTH = side.model.get_input_embeddings()(IDS_BT).detach().requires_grad_()
        side.model(inputs_embeds=x_BTH, labels=IDS_BT).loss.backward()
        assert x_BTH.grad is not None
        return x_BTH.grad

    pair = pairs()
    assert_same([ask(pair.ours)], [ask(pair.theirs)], BOUND)
