"""The classifiers by themselves; parity with transformers is in `parity/test_classifiers`."""

import pytest
import torch
from support.parity import SMALL

from glm_cluster.errors import ConfigError
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.heads import GlmForSequenceClassification, GlmForTokenClassification

CONFIG = GlmConfig(**SMALL, num_labels=3)
IDS_BT = torch.tensor([[0, 0, 5, 9], [7, 8, 0, 0]])


@pytest.mark.parametrize("kind", [GlmForSequenceClassification, GlmForTokenClassification])
def test_every_rank_holds_the_whole_head(kind: type[GlmForSequenceClassification]) -> None:
    model = kind(CONFIG)
    shards = {name: shard for name, shard in model.shards().items() if name.startswith("score")}
    expected = {"score.weight": (3, 64)} | ({"score.bias": (3,)} if kind.has_bias else {})
    assert {name: shard.shape for name, shard in shards.items()} == expected
    assert model.num_labels == 3
    assert model.get_output_embeddings() is None


def test_pooling_needs_no_mask() -> None:
    model = GlmForSequenceClassification(CONFIG).eval()
    with torch.no_grad():
        both = model(IDS_BT).logits
        left, right = model(IDS_BT[:1]).logits, model(IDS_BT[1:, :2]).logits
    torch.testing.assert_close(both, torch.cat([left, right]))


def test_what_labels_show_is_noted_once() -> None:
    """The first labels decide; later ones of another kind meet the loss that they chose."""
    model = GlmForSequenceClassification(CONFIG).eval()
    model(IDS_BT, labels=torch.tensor([0, 2]))
    assert model.config.problem_type == "single_label_classification"
    again = model(IDS_BT, labels=torch.tensor([0, 2], dtype=torch.int16).long())
    assert torch.isfinite(again.loss)


def test_no_labels_no_loss() -> None:
    assert GlmForSequenceClassification(CONFIG)(IDS_BT).loss is None
    assert GlmForTokenClassification(CONFIG)(IDS_BT).loss is None


def test_token_dropout_rests_in_eval_mode() -> None:
    model = GlmForTokenClassification(CONFIG)
    assert not torch.equal(model(IDS_BT).logits, model(IDS_BT).logits)
    model.eval()
    assert torch.equal(model(IDS_BT).logits, model(IDS_BT).logits)


def test_one_label_is_no_choice() -> None:
    with pytest.raises(ConfigError, match="needs two labels"):
        GlmConfig(num_labels=1, problem_type="single_label_classification")
