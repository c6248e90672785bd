"""Verification finds nothing on a sound checkpoint, and finds what is wrong with the other side of a broken one."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.chatglm import write_chatglm, write_thudm_tokenizer
from support.checkpoints import TINY, edit_json, write_checkpoint
from support.tiny_text import TEMPLATE, VOCAB_SIZE, write_tiny_text
from transformers import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForSequenceClassification

from glm_cluster.cli import main
from glm_cluster.engine import memory
from glm_cluster.errors import CheckpointError, ConfigError
from glm_cluster.model.glm import GlmModel
from glm_cluster.verify import Check as Found
from glm_cluster.verify import Report, render, verify
from glm_cluster.verify.transformers_oracle import TransformersOracle
from glm_cluster.verify.verification import compare

QUICK: dict[str, Any] = {"tp": (), "max_new_tokens": 3}
NUM_ROWS = 301


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with more rows than its tokenizer has tokens, as every published GLM."""
    directory = write_checkpoint(tmp_path_factory.mktemp("sound"), vocab_size=NUM_ROWS)
    return write_tiny_text(directory)


@pytest.fixture
def copied(sound: Path, tmp_path: Path) -> Path:
    """What the oracle is shown instead."""
    return Path(shutil.copytree(sound, tmp_path / "copied"))


def _verdicts(report: Report) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks}


def _compared(directory: Path, copied: Path) -> Report:
    return compare(directory, TransformersOracle(copied), **QUICK)


def test_a_sound_checkpoint_is_equal(sound: Path) -> None:
    seen: list[Found] = []
    report = verify(sound, max_new_tokens=4, tp=(2,), on_check=seen.append)
    assert tuple(seen) == report.checks
    assert report.first_difference is None
    assert _verdicts(report) == {
        "config": "equal",
        "files": "equal",
        "tokenizer": "equal",
        "chat template": "equal",
        "logits (plain forward)": "equal",
        "greedy (plain forward)": "equal",
        "static cache": "equal",
        "logits (engine)": "within",
        "greedy (engine)": "equal",
        "chunked prefill (engine)": "equal",
        "prefix cache (engine)": "equal",
        "logits (tp 2)": "within",
        "greedy (tp 2)": "equal",
        "chunked prefill (tp 2)": "equal",
        "prefix cache (tp 2)": "equal",
        "padding rows": "equal",
    }
    text = render(report)
    assert "transformers 5." in text.split("\n")[0]
    assert text.split("\n")[-1].startswith("verified: equal to transformers 5.")


def test_every_legal_size_up_to_four_is_looked_at(tmp_path: Path) -> None:
    directory = write_checkpoint(
        tmp_path, num_attention_heads=6, num_key_value_heads=3, intermediate_size=96, num_hidden_layers=1
    )
    report = verify(directory, max_new_tokens=2)
    assert {name for name in _verdicts(report) if name.startswith("greedy (tp")} == {"greedy (tp 3)"}
    assert report.first_difference is None
    with pytest.raises(ConfigError, match="tp 4 does not divide"):
        verify(directory, tp=(4,))


def test_without_a_tokenizer_ids_are_drawn(checkpoint: Callable[..., Path]) -> None:
    report = verify(checkpoint(), **QUICK)
    assert report.first_difference is None
    skipped = {name for name, verdict in _verdicts(report).items() if verdict == "skipped"}
    assert skipped == {"tokenizer", "chat template", "padding rows"}
    with pytest.raises(ConfigError, match="a checkpoint with a tokenizer"):
        verify(checkpoint(), prompts=["hi"])


def test_glm4_with_yarn_and_settings_of_generation_is_equal(tmp_path: Path) -> None:
    """generation_config.json's penalties and sampling are no part of the comparison; its end-of-sequence ids are."""
    torch.manual_seed(0)
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e4}
    Glm4ForCausalLM(Glm4Config(**TINY, rope_parameters=rope)).save_pretrained(tmp_path)
    settings = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.5, "eos_token_id": [5, 9]}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    report = verify(tmp_path, **QUICK)
    assert report.first_difference is None
    assert _verdicts(report)["config"] == _verdicts(report)["greedy (plain forward)"] == "equal"


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    GlmForSequenceClassification(GlmConfig(**TINY)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="holds a GlmForSequenceClassification"):
        verify(tmp_path)


@pytest.mark.parametrize("changes", [{}, {"multi_query_attention": False, "tie_word_embeddings": True}], ids=str)
def test_thudms_checkpoints_are_compared_on_mapped_tensors(tmp_path: Path, changes: dict) -> None:
    report = verify(write_chatglm(tmp_path, **changes), **QUICK)
    assert report.first_difference is None
    verdicts = _verdicts(report)
    assert (verdicts["config"], verdicts["logits (plain forward)"]) == ("skipped", "equal")
    assert "its GlmForCausalLM was filled with the tensors as we map them" in render(report)


def test_bf16_is_equal_to_the_bit_in_the_plain_forward(checkpoint: Callable[..., Path]) -> None:
    report = verify(checkpoint(dtype="bfloat16"), **QUICK)
    found = next(check for check in report.checks if check.name == "logits (plain forward)")
    assert (found.verdict, found.measured) == ("equal", 0.0)
    assert "bfloat16 on the CPU" in render(report)
    assert report.first_difference is None


def test_one_flipped_weight_is_found(sound: Path, copied: Path) -> None:
    path = copied / "model.safetensors"
    tensors = load_file(path)
    weight = tensors["model.layers.2.mlp.down_proj.weight"]
    weight[3, 5] = -weight[3, 5]
    save_file(tensors, path, metadata={"format": "pt"})
    report = _compared(sound, copied)
    assert report.first_difference is not None
    assert report.first_difference.name == "logits (plain forward)"
    assert "the logit of id" in report.first_difference.detail
    assert render(report).split("\n")[-1].startswith("DIFFERENT: logits (plain forward): prompt ")


def test_another_rope_theta_is_found_twice(sound: Path, copied: Path) -> None:
    rope = json.loads((copied / "config.json").read_text())["rope_parameters"]
    edit_json(copied / "config.json", rope_parameters={**rope, "rope_theta": 5e6})
    report = _compared(sound, copied)
    assert report.first_difference is not None
    assert report.first_difference.detail == "rope_theta is 10000.0 here and 5000000.0 there"
    assert _verdicts(report)["logits (engine)"] == "different"


def test_a_reordered_vocabulary_is_found(sound: Path, copied: Path) -> None:
    """Two rare bytes swap places: no text of the corpus need hold them."""
    content = json.loads((copied / "tokenizer.json").read_text())
    names = {id: token for token, id in content["model"]["vocab"].items()}
    content["model"]["vocab"] |= {names[0xFE]: 0xFF, names[0xFF]: 0xFE}
    (copied / "tokenizer.json").write_text(json.dumps(content))
    found = _compared(sound, copied).first_difference
    assert found is not None
    assert found.name == "tokenizer"
    assert found.detail.startswith("token 254 is")


def test_a_dropped_merge_is_found(sound: Path, copied: Path) -> None:
    """The same tokens by the same ids, reached otherwise."""
    content = json.loads((copied / "tokenizer.json").read_text())
    content["model"]["merges"] = []
    (copied / "tokenizer.json").write_text(json.dumps(content))
    found = _compared(sound, copied).first_difference
    assert found is not None
    assert (found.name, "here and" in found.detail) == ("tokenizer", True)


def test_another_template_is_found(sound: Path, copied: Path) -> None:
    (copied / "chat_template.jinja").write_text(TEMPLATE.replace("|>\n", "|> "))
    found = _compared(sound, copied).first_difference
    assert found is not None
    assert (found.name, found.detail.startswith("conversation 1 is")) == ("chat template", True)


def test_a_missing_tensor_ends_it_before_any_model_is_loaded(sound: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(sound, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    report = _compared(broken, sound)
    found = report.first_difference
    assert found is not None
    assert (found.name, "down_proj.weight' is missing" in found.detail) == ("files", True)
    assert not [name for name in _verdicts(report) if "logits" in name]


def test_a_likely_padding_row_is_never_sampled(sound: Path, tmp_path: Path) -> None:
    """Its logit is the largest everywhere; oracle and engine both leave it out, and so must a server."""
    tempted = Path(shutil.copytree(sound, tmp_path / "tempted"))
    tensors = load_file(tempted / "model.safetensors")
    best = tensors["lm_head.weight"][:VOCAB_SIZE]
    tensors["lm_head.weight"][VOCAB_SIZE : VOCAB_SIZE + 8] = best[:8] * 50
    save_file(tensors, tempted / "model.safetensors", metadata={"format": "pt"})
    report = verify(tempted, **QUICK)
    assert report.first_difference is None
    found = report.checks[-1]
    assert found.detail.startswith(f"none of the {NUM_ROWS - VOCAB_SIZE} ids without a token among ")


def test_an_engine_that_samples_padding_rows_is_found(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glm_cluster.engine import heads

    monkeypatch.setattr(heads.TokenHead, "__init__", _forgetful)
    tempted = Path(shutil.copytree(sound, tmp_path / "tempted"))
    tensors = load_file(tempted / "model.safetensors")
    tensors["lm_head.weight"][VOCAB_SIZE:] *= 100
    save_file(tensors, tempted / "model.safetensors", metadata={"format": "pt"})
    verdicts = _verdicts(verify(tempted, **QUICK))
    assert (verdicts["greedy (engine)"], verdicts["padding rows"]) == ("different", "different")


def _forgetful(head: Any, model: Any, unused: Any) -> None:
    head._model, head._unused = model, ()


def test_without_transformers_it_is_a_self_check(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it fails
    report = verify(sound, **QUICK)
    assert report.first_difference is None
    assert report.is_self_check
    text = render(report)
    assert text.split("\n")[-1] == "self-check passed against our own plain forward (not compared: config)"
    assert "transformers" not in text
    verdicts = _verdicts(report)
    assert (verdicts["config"], verdicts["tokenizer"], verdicts["logits (engine)"]) == ("skipped", "equal", "within")
    assert "logits (plain forward)" not in verdicts
    with pytest.raises(ConfigError, match="pip install transformers"):
        verify(sound, against="transformers")


def test_a_self_check_can_be_asked_for_and_can_fail(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GlmModel, "hidden", lambda self, *args, right=GlmModel.hidden: right(self, *args).flip(-1))
    report = verify(sound, against="self", **QUICK)
    assert report.first_difference is not None
    assert report.first_difference.name == "logits (engine)"


def test_own_prompts_are_asked(sound: Path) -> None:
    report = verify(sound, prompts=["hi", "你好"], **QUICK)
    assert "2 prompts of" in report.facts[0]
    assert report.first_difference is None


def test_a_model_without_room_is_refused_with_the_number(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**28)
    with pytest.raises(ConfigError, match=r"takes 0\.5 GiB to verify in float32 and 0\.2 GiB of memory are free"):
        verify(sound, **QUICK)


def test_what_cannot_be_asked_is_refused(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        verify(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        verify(tmp_path)
    for wrong in ({"dtype": "float16"}, {"max_new_tokens": 0}, {"max_new_tokens": 512}, {"prompts": []}):
        with pytest.raises(ConfigError):
            verify(sound, **wrong)


def test_only_one_model_is_in_memory_at_a_time(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is gone before ours is loaded: both would not fit where one does."""
    import gc
    import weakref

    from glm_cluster.verify import verification

    oracles: list[weakref.ref[torch.nn.Module]] = []
    load = TransformersOracle._load

    def keep(oracle: TransformersOracle, dtype: str) -> Any:
        model = load(oracle, dtype)
        oracles.append(weakref.ref(model))
        return model

    alive: list[bool] = []
    load_plain = verification.load_plain

    def look(directory: Path, dtype: str) -> Any:
        gc.collect()
        alive.append(oracles[0]() is not None)
        return load_plain(directory, dtype)

    monkeypatch.setattr(TransformersOracle, "_load", keep)
    monkeypatch.setattr(verification, "load_plain", look)
    verify(sound, **QUICK)
    assert alive == [False]


def test_glm4s_own_text_is_compared(shared_data: Path, tmp_path: Path) -> None:
    """As glm-4-9b-chat is published: a tokenizer.model that transformers reads with remote code only."""
    directory = write_chatglm(
        tmp_path, num_layers=1, hidden_size=16, ffn_hidden_size=32, padded_vocab_size=151552, kv_channels=8
    )
    edit_json(directory / "config.json", eos_token_id=[151329, 151336, 151338], pad_token_id=151329)
    edit_json(directory / "generation_config.json", eos_token_id=[151329, 151336, 151338], pad_token_id=151329)
    write_thudm_tokenizer(directory, shared_data, "glm-4-9b-chat.jinja")
    report = verify(directory, tp=(), max_new_tokens=2, prompts=["Hello 你好"])
    assert report.first_difference is None
    verdicts = _verdicts(report)
    assert (verdicts["tokenizer"], verdicts["chat template"]) == ("equal", "equal")
    assert "its classes were given the vocabulary as we read it" in render(report)
    assert report.checks[-1].detail.startswith("none of the 209 ids without a token")


@pytest.mark.demo
def test_the_demo_model_is_equal(demo_directory: Path) -> None:
    report = verify(demo_directory, tp=(), max_new_tokens=2, prompts=["What is the capital of France?"])
    assert report.first_difference is None, render(report)
    verdicts = _verdicts(report)
    assert {verdicts[name] for name in ("config", "tokenizer", "chat template", "logits (plain forward)")} == {"equal"}


@pytest.mark.parametrize(("verdict", "status"), [("within", 0), ("different", 1)])
def test_the_command_ends_by_the_verdict(
    verdict: Any, status: int, sound: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was found is the comparison's business; the command's is the table and the status."""
    found = Found(name="logits", detail="made up", verdict=verdict)
    made = Report(model="m", against="transformers 5", is_self_check=False, facts=(), checks=(found,))
    monkeypatch.setattr("glm_cluster.verify.verify", lambda directory, **options: made)
    assert main(["verify", "--model", str(sound)]) == status
    assert "made up" in capsys.readouterr().out


def test_the_command_verifies(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--against", "self", "--tp", "1", "--max-tokens", "2", "--prompt", "hi", "--dtype", "float32"]
    assert main(["verify", "--model", str(sound), *flags]) == 0
    captured = capsys.readouterr()
    assert "self-check passed against our own plain forward" in captured.out
    assert "greedy (engine): equal" in captured.err


def test_frequencies_of_the_served_length_are_what_is_compared(tmp_path: Path) -> None:
    """An engine takes those of its whole context for `dynamic`; on short prompts that is not HF, and verify says so."""
    rope = {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    directory = write_tiny_text(write_checkpoint(tmp_path, vocab_size=NUM_ROWS, rope_parameters=rope))
    report = verify(directory, **QUICK)
    assert _verdicts(report)["logits (plain forward)"] == "equal"
    assert report.first_difference is not None
    assert report.first_difference.name == "logits (engine)"
