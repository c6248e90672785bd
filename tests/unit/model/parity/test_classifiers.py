"""The classifiers against transformers: pooling, losses and what they refuse. Bound: every bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.parity import BF16, EAGER, GLM4, NO_BIAS, ROPES, Pair, Pairs, Side, assert_same, save_random
from support.scenarios import IDS_BT, LEFT_BT, RIGHT_BT, held, padded, positions
from torch import Tensor

from glm_cluster.model.config import GlmConfig
from glm_cluster.model.heads import GlmForSequenceClassification
from glm_cluster.model.losses import sequence_loss

SEQUENCE, TOKEN = "ForSequenceClassification", "ForTokenClassification"
GRID: dict[str, dict[str, Any]] = {
    "two labels": {},
    "one label": {"num_labels": 1, "model_type": "glm"},
    "five labels, eager": {"num_labels": 5, **EAGER},
    "bf16": {"num_labels": 3, **BF16},
    "bf16, yarn": {"num_labels": 3, **BF16, **EAGER, **ROPES["yarn"]},
    "glm4, by state": {"num_labels": 4, **GLM4, **NO_BIAS, "way": "state_dict"},
    "engine": {"num_labels": 3, "way": "load_model"},
}


def asked(side: Side) -> list[Tensor]:
    given = [
        side.model(IDS_BT).logits,
        side.model(padded(LEFT_BT), LEFT_BT, positions(LEFT_BT)).logits,
        side.model(padded(RIGHT_BT), RIGHT_BT).logits,
        side.model(padded(LEFT_BT)).logits,
        side.model(inputs_embeds=side.model.get_input_embeddings()(IDS_BT)).logits,
        side.model(IDS_BT, output_hidden_states=True).hidden_states[-1],
    ]
    holes_BT = padded(RIGHT_BT)
    holes_BT[0, -1] = 0  # padding after the end,
    holes_BT[1, 4] = 0  # in the middle,
    holes_BT[2] = 0  # and nothing else
    return [*given, side.model(holes_BT).logits]


@pytest.mark.parametrize("row", GRID)
@pytest.mark.parametrize("kind", [SEQUENCE, TOKEN])
def test_logits(pairs: Pairs, kind: str, row: str) -> None:
    assert_same(*pairs(kind, **GRID[row]).both(asked))


def test_the_rightmost_token_that_is_no_padding_is_pooled(pairs: Pairs) -> None:
    """Whatever the attention mask says, and on whichever side the padding is."""
    model = pairs(SEQUENCE).ours.model
    with torch.no_grad():
        for mask_BT in (RIGHT_BT, LEFT_BT):
            every_BTL = model.score(model.model(padded(mask_BT)).last_hidden_state)
            last = [int(row.nonzero().max()) for row in mask_BT]
            assert torch.equal(model(padded(mask_BT)).logits, every_BTL[range(3), last])


def test_a_sequence_classifier_continues_a_cache(pairs: Pairs) -> None:
    def ask(side: Side) -> list[Tensor]:
        first = side.model(IDS_BT[:, :9])
        output = side.model(IDS_BT[:, 9:], past_key_values=first.past_key_values)
        return [first.logits, output.logits, *held(output.past_key_values)]

    assert_same(*pairs(SEQUENCE).both(ask))


FLOATS = torch.tensor([[0.3], [-1.0], [2.5]])
LOSSES: dict[str, tuple[dict[str, Any], Tensor]] = {
    "regression by one label": ({"num_labels": 1}, FLOATS[:, 0]),
    "regression, a column": ({"num_labels": 1}, FLOATS),
    "regression of several": ({"num_labels": 4, "problem_type": "regression"}, FLOATS.expand(-1, 4)),
    "single by long labels": ({"num_labels": 4}, torch.tensor([3, 0, 1])),
    "single by int labels and name": (
        {"num_labels": 4, "problem_type": "single_label_classification"},
        torch.tensor([[3], [0], [-100]]),
    ),
    "multi by float labels": ({"num_labels": 4}, torch.tensor([[0.0, 1, 1, 0], [1.0, 0, 0, 0], [0.0, 0, 0, 0]])),
    "multi by name": (
        {"num_labels": 2, "problem_type": "multi_label_classification"},
        torch.tensor([[0.0, 1], [1.0, 1], [0.0, 0]]),
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_a_sequence_classifier(pairs: Pairs, name: str, dtype: str) -> None:
    """Labels in the model's dtype where they are numbers: HF does not cast the logits."""
    options, labels = LOSSES[name]
    labels = labels.to(getattr(torch, dtype)) if labels.is_floating_point() else labels
    pair = pairs.fresh(SEQUENCE, dtype=dtype, **options)  # the loss notes the problem type in the config
    ours, theirs = pair.both(lambda side: side.model(padded(RIGHT_BT), RIGHT_BT, labels=labels))
    assert_same([ours.loss, ours.logits], [theirs.loss, theirs.logits])
    assert pair.ours.model.config.problem_type == pair.theirs.model.config.problem_type


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loss_of_a_token_classifier_ignores_minus_100(pairs: Pairs, dtype: str) -> None:
    labels_BT = (IDS_BT % 3).masked_fill(LEFT_BT == 0, -100)
    pair = pairs(TOKEN, num_labels=3, dtype=dtype)
    ours, theirs = pair.both(lambda side: side.model(padded(LEFT_BT), LEFT_BT, labels=labels_BT))
    assert_same([ours.loss, ours.logits], [theirs.loss, theirs.logits])
    assert ours.loss.dtype == torch.float32
    others_BT = labels_BT.clone()
    others_BT[2, -1] = (labels_BT[2, -1] + 1) % 3
    changed = pair.ours.model(padded(LEFT_BT), LEFT_BT, labels=others_BT)
    assert not torch.equal(changed.loss, ours.loss)


def no_padding(pair: Pair) -> tuple[Any, Any]:
    """Ours and theirs without a padding id."""
    ours = GlmForSequenceClassification(pair.ours.model.config.replace(pad_token_id=None)).eval()
    ours.load_state_dict(pair.ours.model.state_dict())
    pair.theirs.model.config.pad_token_id = None
    return ours, pair.theirs.model


def test_without_a_padding_id_only_one_row_can_be_pooled(pairs: Pairs) -> None:
    for model in no_padding(pairs.fresh(SEQUENCE)):
        with pytest.raises(ValueError, match=r"^Cannot handle batch sizes > 1 if no padding token is defined\.$"):
            model(IDS_BT)


def test_without_a_padding_id_one_rows_last_token_is_pooled(pairs: Pairs) -> None:
    ours, theirs = (model(IDS_BT[:1]).logits for model in no_padding(pairs.fresh(SEQUENCE)))
    assert_same([ours], [theirs])


def test_embeddings_show_no_padding_which_is_said(pairs: Pairs, caplog: pytest.LogCaptureFixture) -> None:
    model = pairs(SEQUENCE).ours.model
    model(inputs_embeds=model.get_input_embeddings()(IDS_BT))
    assert "inputs_embeds" in caplog.text


def test_an_unknown_problem_type_is_a_runtime_error(pairs: Pairs) -> None:
    """The config refuses one; who goes around it meets HF's error."""
    theirs = pairs.fresh(SEQUENCE).theirs.model
    object.__setattr__(theirs.config, "problem_type", "ranking")
    with pytest.raises(RuntimeError, match="Invalid problem type: ranking"):
        theirs(IDS_BT, labels=torch.tensor([0, 1, 0]))
    with pytest.raises(RuntimeError, match="Invalid problem type: ranking"):
        sequence_loss(torch.zeros(3, 2), torch.tensor([0, 1, 0]), "ranking")


DROPOUTS: list[dict[str, float]] = [
    {},
    {"classifier_dropout": 0.3},
    {"hidden_dropout": 0.4},
    {"classifier_dropout": 0.0, "hidden_dropout": 0.4},
]


@pytest.mark.parametrize("keys", DROPOUTS, ids=str)
def test_dropout_of_a_token_classifier(pairs: Pairs, keys: dict[str, float]) -> None:
    """The same probability as HF's, and with a seed the same elements."""
    pair = pairs.fresh(TOKEN, **keys)
    assert pair.ours.model.dropout.p == pair.theirs.model.dropout.p

    def ask(side: Side) -> list[Tensor]:
        torch.manual_seed(7)
        return [side.model.train()(IDS_BT).logits]

    assert_same(*pair.both(ask))


def test_a_head_is_as_wide_as_its_labels(tmp_path: Path) -> None:
    save_random(tmp_path, SEQUENCE, num_labels=3)
    config = GlmConfig.from_pretrained(tmp_path)
    assert (config.num_labels, config.id2label[2]) == (3, "LABEL_2")
    assert GlmForSequenceClassification.from_pretrained(tmp_path).score.weight.shape == (3, 64)
