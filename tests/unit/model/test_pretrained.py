"""Saving, loading, resizing, tying and fresh weights, with transformers as the reader and the oracle."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.parity import GLM4, OURS, ROPES, SMALL, TIED, assert_same, ids, save_random

from glm_cluster.errors import CheckpointError, ConfigError
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.glm import GlmForCausalLM, GlmModel
from glm_cluster.model.heads import GlmForSequenceClassification, GlmForTokenClassification
from glm_cluster.model.loading import load_model
from glm_cluster.model.ranks import Ranks

IDS_BT = ids(2, 9)
SAVED: dict[str, tuple[str, dict[str, Any], str]] = {
    "causal": ("ForCausalLM", {}, "float32"),
    "tied": ("ForCausalLM", TIED, "float32"),
    "bf16": ("ForCausalLM", {}, "bfloat16"),
    "tied, bf16, glm4": ("ForCausalLM", {**TIED, **GLM4}, "bfloat16"),
    "yarn": ("ForCausalLM", ROPES["yarn"], "float32"),
    "bare": ("Model", {}, "float32"),
    "bare, glm4": ("Model", GLM4, "bfloat16"),
    "sequence": ("ForSequenceClassification", {"id2label": {0: "no", 1: "yes", 2: "maybe"}}, "float32"),
    "token": ("ForTokenClassification", {"num_labels": 5, "classifier_dropout": 0.2}, "float32"),
}


def tensors(output: Any) -> list[torch.Tensor]:
    return [output.last_hidden_state if hasattr(output, "last_hidden_state") else output.logits]


@pytest.mark.parametrize("max_shard_size", ["50GB", "40KB", 20_000])
@pytest.mark.parametrize("name", SAVED)
@torch.no_grad()
def test_what_we_save_transformers_and_we_read_alike(tmp_path: Path, name: str, max_shard_size: str | int) -> None:
    kind, options, dtype = SAVED[name]
    save_random(tmp_path / "theirs", kind, dtype, **options)
    model = OURS[kind].from_pretrained(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours", max_shard_size=max_shard_size)
    again = OURS[kind].from_pretrained(tmp_path / "ours")
    family = "Glm4" if options.get("model_type") == "glm4" else "Glm"
    theirs, notes = getattr(transformers, family + kind).from_pretrained(
        tmp_path / "ours", dtype="auto", output_loading_info=True
    )
    expected = tensors(model(IDS_BT))
    assert not any(notes[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(tensors(again(IDS_BT)), expected)
    assert_same(tensors(theirs.eval()(IDS_BT)), expected)
    assert again.config == model.config
    assert theirs.config.architectures == [family + kind]
    assert str(theirs.dtype) == f"torch.{dtype}"
    sharded = (tmp_path / "ours" / "model.safetensors.index.json").exists()
    assert sharded == (max_shard_size != "50GB")


def test_the_index_is_what_transformers_writes(tmp_path: Path) -> None:
    theirs = save_random(tmp_path / "whole", **TIED)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    model = GlmForCausalLM.from_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "ours", max_shard_size="40KB")
    ours, expected = (
        json.loads((tmp_path / who / "model.safetensors.index.json").read_text()) for who in ("ours", "theirs")
    )
    assert ours["metadata"] == expected["metadata"]
    assert ours["weight_map"].keys() == expected["weight_map"].keys()
    assert "lm_head.weight" not in ours["weight_map"]
    files = {path.name for path in (tmp_path / "ours").glob("*.safetensors")}
    assert files == set(ours["weight_map"].values())


def test_saving_again_leaves_no_stale_shard(tmp_path: Path) -> None:
    save_random(tmp_path)
    model = GlmForCausalLM.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]


@pytest.mark.parametrize("size", ["ten", "5XB", ""])
def test_a_shard_size_is_bytes(tmp_path: Path, size: str) -> None:
    model = GlmForCausalLM(GlmConfig(**SMALL))
    with pytest.raises(ConfigError, match="max_shard_size"):
        model.save_pretrained(tmp_path, max_shard_size=size)


@pytest.mark.parametrize("kind", [GlmForSequenceClassification, GlmForTokenClassification])
def test_a_language_model_becomes_a_classifier(tmp_path: Path, kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The decoder is the checkpoint's; the head is new, which is said."""
    save_random(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = kind.from_pretrained(tmp_path, num_labels=7)
    assert "score.weight" in caplog.text
    assert "newly initialised" in caplog.text
    assert model.score.weight.shape == (7, 64)
    assert float(model.score.weight.detach().std()) == pytest.approx(SMALL["initializer_range"], rel=0.2)
    assert model.score.bias is None or not model.score.bias.any()
    body = GlmForCausalLM.from_pretrained(tmp_path).model
    assert_same(list(model.model.state_dict().values()), list(body.state_dict().values()))


def test_a_classifier_becomes_a_language_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_random(tmp_path, "ForSequenceClassification")
    with caplog.at_level(logging.WARNING):
        model = GlmForCausalLM.from_pretrained(tmp_path)
    assert "lm_head.weight" in caplog.text
    assert float(model.lm_head.weight.detach().std()) == pytest.approx(SMALL["initializer_range"], rel=0.2)


def test_a_tied_model_misses_no_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_random(tmp_path, "ForSequenceClassification", **TIED)
    model = GlmForCausalLM.from_pretrained(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not caplog.records


def test_the_engine_makes_no_head(tmp_path: Path) -> None:
    save_random(tmp_path)
    with pytest.raises(CheckpointError, match="score"):
        load_model(tmp_path, ranks=Ranks.single(), task="classify")


@pytest.mark.parametrize("kind", ["Model", "ForCausalLM"])
def test_with_and_without_the_prefix(tmp_path: Path, kind: str) -> None:
    """A bare model's file has no `model.` before its names; either class reads either file."""
    save_random(tmp_path, kind)
    bare, whole = GlmModel.from_pretrained(tmp_path), GlmForCausalLM.from_pretrained(tmp_path)
    assert_same(list(bare.state_dict().values()), list(whole.model.state_dict().values()))


def test_a_missing_layer_is_refused(tmp_path: Path) -> None:
    save_random(tmp_path)
    with pytest.raises(CheckpointError, match=r"layers\.2\."):
        GlmForCausalLM.from_pretrained(tmp_path, num_hidden_layers=3)


def test_from_pretrained_takes_config_keys(tmp_path: Path) -> None:
    save_random(tmp_path)
    model = GlmForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", rope_theta=5e6, use_cache=False, torch_dtype=torch.bfloat16
    )
    config = model.config
    assert (config.attn_implementation, config.rope_theta, config.use_cache) == ("eager", 5e6, False)
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(TypeError, match="num_layer"):
        GlmForCausalLM.from_pretrained(tmp_path, num_layer=3)
    with pytest.raises(ConfigError, match="dtype"):
        GlmForCausalLM.from_pretrained(tmp_path, dtype="int8")


def test_dtype_auto_is_the_stored_one(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        save_random(tmp_path / dtype, dtype=dtype)
        assert GlmForCausalLM.from_pretrained(tmp_path / dtype).dtype == getattr(torch, dtype)
        engine = load_model(tmp_path / dtype, ranks=Ranks.single())
        assert engine.dtype == (torch.float32 if dtype == "float32" else torch.bfloat16)


SIZES: dict[str, tuple[int | None, int | None]] = {
    "up": (120, None),
    "down": (50, None),
    "the same": (97, None),
    "multiple": (None, 64),
    "up to a multiple": (100, 16),
    "down to a multiple": (33, 32),
    "nothing asked": (None, None),
}


@pytest.mark.parametrize("mean_resizing", [True, False])
@pytest.mark.parametrize("options", [{}, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_resized_as_transformers_resizes(tmp_path: Path, name: str, options: dict, mean_resizing: bool) -> None:
    """Kept rows bit for bit, sizes, config and tying as HF's; new rows as close to the mean as theirs."""
    save_random(tmp_path, **options)
    theirs, ours = transformers.GlmForCausalLM.from_pretrained(tmp_path), GlmForCausalLM.from_pretrained(tmp_path)
    old_VH = ours.model.embed_tokens.weight.clone()
    for model in (theirs, ours):
        torch.manual_seed(4)
        returned = model.resize_token_embeddings(*SIZES[name], mean_resizing=mean_resizing)
        assert returned is model.get_input_embeddings()
    size = theirs.config.vocab_size
    assert ours.config.vocab_size == ours.model.config.vocab_size == size
    assert ours.model.embed_tokens.num_embeddings == ours.lm_head.out_features == size
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == bool(options)
    kept = min(size, 97)
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert_same([mine[:kept]], [other[:kept]])
        assert mine.shape == other.shape
    fresh = [
        weight[kept:] for model in (ours, theirs) for weight in (model.model.embed_tokens.weight, model.lm_head.weight)
    ]
    if mean_resizing:
        for weight in fresh[::2]:
            torch.testing.assert_close(weight, old_VH.mean(0).expand_as(weight), atol=1e-3, rtol=0)
    elif size > kept + 5:
        assert all(float(weight.std()) == pytest.approx(SMALL["initializer_range"], rel=0.2) for weight in fresh)
    chosen = IDS_BT % kept
    assert_same([ours(chosen).logits[..., :kept]], [theirs(chosen).logits[..., :kept]], 1e-6)


def test_a_resize_to_the_same_size_keeps_the_parameters() -> None:
    model = GlmForCausalLM(GlmConfig(**SMALL))
    before = model.model.embed_tokens.weight
    model.resize_token_embeddings(97)
    assert model.model.embed_tokens.weight is before


@pytest.mark.parametrize("size", [10, 9, 8])
def test_a_padding_row_that_is_cut_off_is_padding_no_more(tmp_path: Path, size: int) -> None:
    save_random(tmp_path, pad_token_id=8)
    theirs, ours = transformers.GlmModel.from_pretrained(tmp_path), GlmModel.from_pretrained(tmp_path)
    for model in (theirs, ours):
        model.resize_token_embeddings(size)
    assert ours.embed_tokens.padding_idx == theirs.embed_tokens.padding_idx == (8 if size > 8 else None)


def test_new_rows_are_the_mean_where_there_are_too_few_to_tell_more() -> None:
    """Fewer rows than columns: their covariance has no density to draw from."""
    model = GlmForCausalLM(GlmConfig(**{**SMALL, "vocab_size": 20}))
    mean_H = model.model.embed_tokens.weight.detach().mean(0)
    model.resize_token_embeddings(22)
    assert torch.equal(model.model.embed_tokens.weight[20:].detach(), mean_H.expand(2, -1))


def test_a_resized_model_is_saved_trained_and_generates(tmp_path: Path) -> None:
    model = GlmForCausalLM(GlmConfig(**{**SMALL, **TIED}))
    model.resize_token_embeddings(110)
    loss = model(torch.tensor([[108, 5, 109]]), labels=torch.tensor([[108, 5, 109]])).loss
    loss.backward()
    assert model.lm_head.weight.grad is not None
    assert model.lm_head.weight.grad.shape == (110, 64)
    model.save_pretrained(tmp_path)
    again = transformers.GlmForCausalLM.from_pretrained(tmp_path)
    assert_same([again.lm_head.weight.detach()], [model.lm_head.weight.detach()])


@pytest.mark.parametrize("kind", OURS)
def test_fresh_weights_are_distributed_as_theirs(kind: str) -> None:
    keys = {**SMALL, "vocab_size": 400, "num_labels": 30, "initializer_range": 0.07, "pad_token_id": 3}
    torch.manual_seed(2)
    ours = OURS[kind](GlmConfig(**keys))
    theirs = getattr(transformers, "Glm" + kind)(transformers.GlmConfig(**keys))
    expected = dict(theirs.named_parameters())
    assert dict(ours.named_parameters()).keys() == expected.keys()
    for name, parameter in ours.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
            assert not expected[name].any()
        elif "norm" in name:
            assert bool((parameter == 1).all())
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.07, rel=0.1), name
            assert float(parameter.detach().abs().max()) > 2.5 * 0.07, "the normal distribution is not cut off"
    assert not ours.get_input_embeddings().weight[3].any()
    assert not theirs.get_input_embeddings().weight[3].any()


def test_a_fresh_tied_model_has_one_matrix_with_a_zero_padding_row() -> None:
    model = GlmForCausalLM(GlmConfig(**{**SMALL, **TIED}))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.lm_head.weight[0].any()
    assert "lm_head.weight" in model.state_dict()


def test_no_padding_id_no_zero_row() -> None:
    model = GlmModel(GlmConfig(**{**SMALL, "pad_token_id": None}))
    assert model.embed_tokens.padding_idx is None
    assert model.embed_tokens.weight.detach().abs().sum(1).min() > 0


def test_nothing_is_filled_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = GlmForCausalLM(GlmConfig())
    assert model.device.type == "meta"
    assert sum(parameter.numel() for parameter in model.parameters()) == 9_399_951_360
