"""What config.json may say, in HF's old and new spellings, and what is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.checkpoints import edit_json
from support.parity import ROPES

from glm_cluster.errors import CheckpointError, ConfigError
from glm_cluster.model.config import GlmConfig


def test_v4_and_v5_spellings_agree() -> None:
    flat = GlmConfig.from_mapping({"rope_theta": 5e6, "partial_rotary_factor": 1.0, "torch_dtype": "bfloat16"})
    nested = GlmConfig.from_mapping(
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 1.0},
            "dtype": "bfloat16",
        }
    )
    assert flat == nested
    assert (flat.rope_theta, flat.rotary_dim, flat.dtype) == (5e6, 128, "bfloat16")


def test_defaults_are_glm_4_9b() -> None:
    config = GlmConfig.from_mapping({"model_type": "glm"})
    assert (config.rotary_dim, config.rope_theta, config.eos_token_ids) == (64, 10000.0, (151329, 151336, 151338))


# Of the page, transformers 5.0.0rc1
KEYS: dict[str, Any] = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "max_position_embeddings": 131072,
    "initializer_range": 0.02,
    "rms_norm_eps": 1.5625e-07,
    "use_cache": True,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "pad_token_id": 151329,
    "eos_token_id": [151329, 151336, 151338],
    "bos_token_id": None,
    "attention_bias": True,
}
BASE_KEYS = ("output_hidden_states", "output_attentions", "return_dict", "num_labels", "id2label", "label2id")


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_the_page_has_its_default(key: str) -> None:
    assert getattr(GlmConfig(), key) == KEYS[key] == getattr(transformers.GlmConfig(), key)


@pytest.mark.parametrize("key", [*BASE_KEYS, "problem_type", "dtype"])
def test_keys_of_every_config_have_hugging_faces_defaults(key: str) -> None:
    assert getattr(GlmConfig(), key) == getattr(transformers.GlmConfig(), key)


def test_glm4_has_the_same_defaults() -> None:
    ours, theirs = GlmConfig(model_type="glm4"), transformers.Glm4Config()
    assert {key: getattr(ours, key) for key in KEYS} == {key: getattr(theirs, key) for key in KEYS}
    assert ours.has_sublayer_norms


FORMS: dict[str, dict[str, Any]] = {
    **ROPES,
    "v4 theta": {"rope_theta": 5e6},
    "v4 factor": {"partial_rotary_factor": 1.0},
    "v4 yarn": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
    "v4 yarn, theta beside": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "rope_theta": 1e6},
    "v4 none": {"rope_scaling": None, "rope_theta": 1e8},
    "v4 linear, both names": {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 8.0}},
    "v5 without a type": {"rope_parameters": {"rope_theta": 123.0}},
    "v5 and flat": {"rope_parameters": {"rope_type": "default", "rope_theta": 7e5}, "rope_theta": 3.0},
    "v5 none": {"rope_parameters": None},
}


@pytest.mark.parametrize("name", FORMS)
def test_rope_is_understood_as_transformers_does(name: str) -> None:
    """v4 keys beside each other and v5 `rope_parameters` fold into one mapping, the same as theirs."""
    keys = {"head_dim": 32, **FORMS[name]}
    theirs = transformers.GlmConfig(**keys)
    theirs.standardize_rope_params()  # as their rotary embedding does first
    assert dict(GlmConfig(**keys).rope_parameters) == dict(theirs.rope_parameters)


CHANGES: dict[str, dict[str, Any]] = {
    **{f"rope {name}": {"head_dim": 32, **keys} for name, keys in ROPES.items()},
    "as it is": {},
    "glm4": {"model_type": "glm4", "attention_bias": False},
    "ids": {"eos_token_id": 5, "pad_token_id": None, "bos_token_id": 9},
    "labels": {"id2label": {0: "no", 1: "yes", 2: "maybe"}, "problem_type": "multi_label_classification"},
    "one label": {"num_labels": 1, "classifier_dropout": 0.25},
    "flags": {"use_cache": False, "tie_word_embeddings": True, "dtype": "bfloat16", "hidden_act": "gelu"},
    "unknown": {"zeta": {"nested": [1, None]}, "auto_map": {"AutoModel": "x.y"}, "transformers_version": "4.46.0"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_saved_config_is_read_back_and_by_transformers(tmp_path: Path, name: str) -> None:
    config = GlmConfig(**CHANGES[name])
    config.save_pretrained(tmp_path)
    assert GlmConfig.from_pretrained(tmp_path) == config
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    for key in (*KEYS, "id2label", "label2id", "num_labels", "problem_type"):
        ours, other = getattr(config, key), getattr(theirs, key)
        assert (dict(ours) if isinstance(other, dict) else ours) == other, key
    theirs.save_pretrained(tmp_path / "theirs")
    again = GlmConfig.from_pretrained(tmp_path / "theirs")
    assert {key: getattr(again, key) for key in KEYS} == {key: getattr(config, key) for key in KEYS}
    assert (again.id2label, again.problem_type) == (config.id2label, config.problem_type)


def test_unknown_keys_are_kept_and_written_back(tmp_path: Path) -> None:
    config = GlmConfig(zeta={"nested": [1, None]}, hidden_size=64)
    assert config.extra == {"zeta": {"nested": [1, None]}}
    assert config.replace(hidden_size=128).to_dict()["zeta"] == {"nested": [1, None]}
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["zeta"] == {"nested": [1, None]}


def test_what_is_not_of_the_weights_is_not_stored() -> None:
    stored = GlmConfig(attn_implementation="eager").to_dict()
    assert not {"attn_implementation", "output_attentions", "return_dict", "extra"} & stored.keys()


@pytest.mark.parametrize("key", ["output_hidden_states", "output_attentions", "return_dict"])
def test_what_outputs_are_wanted_is_stored_where_it_was_set(tmp_path: Path, key: str) -> None:
    """HF's own save keeps it; we read that, and they read ours."""
    value = not getattr(GlmConfig(), key)
    theirs = transformers.GlmConfig(**{key: value}, attn_implementation="eager")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = GlmConfig.from_pretrained(tmp_path / "theirs")
    assert getattr(ours, key) is value
    ours.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())[key] is value
    assert getattr(transformers.AutoConfig.from_pretrained(tmp_path / "ours"), key) is value


@pytest.mark.parametrize("value", [5, "x", [1], None])
def test_a_key_named_extra_is_unknown_like_any_other(value: object) -> None:
    """It was a raw TypeError: only our own nested mapping is spread out."""
    config = GlmConfig(extra=value, zeta=1)
    assert config.extra == {"extra": value, "zeta": 1}
    assert GlmConfig(**config.to_dict()) == config == config.replace()


def test_replace_changes_a_copy() -> None:
    config = GlmConfig(**ROPES["yarn"], head_dim=32)
    changed = config.replace(rope_theta=5e6, num_labels=4, vocab_size=10)
    assert (changed.rope_theta, changed.num_labels, changed.vocab_size) == (5e6, 4, 10)
    assert changed.rope_parameters["factor"] == config.rope_parameters["factor"]
    assert (config.rope_theta, config.num_labels, config.vocab_size) == (10000.0, 2, 151552)
    with pytest.raises(ConfigError, match="hidden_act"):
        config.replace(hidden_act="mish")


def test_old_names_and_derived_values() -> None:
    config = GlmConfig(
        _attn_implementation="eager", torch_dtype=torch.bfloat16, num_key_value_heads=None, head_dim=None
    )
    assert (config.attn_implementation, config.dtype) == ("eager", "bfloat16")
    assert (config.num_key_value_heads, config.head_dim) == (32, 128)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "llama"}, "llama"),
    ({"hidden_act": "mish"}, "mish"),
    ({"attn_implementation": "flash_attention_2"}, "attn_implementation"),
    ({"problem_type": "ranking"}, "problem_type"),
    ({"num_attention_heads": 32, "num_key_value_heads": 5}, "multiple"),
    ({"rope_scaling": {"type": "su", "factor": 4.0}}, "su"),
    ({"rope_scaling": [4.0]}, "rope_scaling"),
    ({"rope_scaling": {"type": "linear"}}, "factor"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": -1.0}}, "factor"),
    ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "short_factor"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    ({"partial_rotary_factor": 0.01}, "partial_rotary_factor"),
    ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
    ({"rope_theta": True}, "rope_theta"),
    ({"rope_theta": "large"}, "rope_theta"),
    ({"eos_token_id": ["x"]}, "eos_token_id"),
    ({"eos_token_id": 1.5}, "eos_token_id"),
    ({"pad_token_id": "0"}, "pad_token_id"),
    ({"attention_dropout": 1.0}, "attention_dropout"),
    ({"num_labels": 0}, "num_labels"),
    ({"num_labels": 3, "id2label": {0: "no", 1: "yes"}}, "num_labels"),
    ({"id2label": {0: "no", 2: "yes"}}, "id2label"),
    ({"id2label": ["no", "yes"]}, "id2label"),
    ({"label2id": ["no", "yes"]}, "label2id"),
    ({"dtype": "int8"}, "dtype"),
    ({"torch_dtype": "half a float"}, "dtype"),
    ({"dtype": 16}, "dtype"),
    ({"rms_norm_eps": math.nan}, "rms_norm_eps"),
    ({"rms_norm_eps": math.inf}, "rms_norm_eps"),
    ({"initializer_range": 10**400}, "initializer_range"),
    ({"rope_theta": math.inf}, "rope_theta"),
    ({"rope_theta": math.nan}, "rope_theta"),
    ({"rope_theta": 10**400}, "rope_theta"),
    ({"partial_rotary_factor": math.inf}, "partial_rotary_factor"),
    ({"rope_parameters": {"rope_type": "linear", "factor": math.inf}}, "factor"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": math.nan}}, "mscale"),
    (
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [math.inf] * 32, "long_factor": [1.0] * 32}},
        "short_factor",
    ),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": 0}}, "truncate"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": "no"}}, "truncate"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}, "head_dim": 4}, "dynamic"),
    ({"model_type": "chatglm", "rope_ratio": math.inf}, "rope_ratio"),
    ({"model_type": "chatglm", "rope_ratio": 10**400}, "rope_ratio"),
    ({"model_type": "chatglm", "layernorm_epsilon": math.nan}, "rms_norm_eps"),
]


@pytest.mark.parametrize(("raw", "word"), REFUSED, ids=[str(raw)[:80] for raw, _ in REFUSED])
def test_what_the_forward_cannot_do_is_refused(raw: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        GlmConfig.from_mapping(raw)


def wrong_type(value: Any) -> Any:
    """Something a key of this default cannot be; true is no number, though Python counts it as one."""
    return {bool: "yes", int: "many", float: True, str: 5}[type(value)]


@pytest.mark.parametrize("key", [key for key, value in KEYS.items() if isinstance(value, bool | int | float | str)])
def test_a_wrong_type_is_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        GlmConfig(**{key: wrong_type(KEYS[key])})


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "num_attention_heads"])
def test_counts_are_whole_and_positive(key: str) -> None:
    for value in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match=key):
            GlmConfig(**{key: value})


def test_legal_tp_sizes_of_glm_4_9b() -> None:
    """2 KV heads: 4 ranks and more must replicate them, 3 divides nothing; 13696 columns stop at 32."""
    assert GlmConfig().legal_tp_sizes() == (1, 2, 4, 8, 16, 32)
    with pytest.raises(ConfigError, match="legal sizes are 1, 2, 4, 8, 16, 32"):
        GlmConfig().check_tp(3)


def test_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        GlmConfig.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
        GlmConfig.from_directory(tmp_path)


def test_generation_config_wins_on_eos(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint()
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert GlmConfig.from_directory(tmp_path).eos_token_ids == (7, 8)
    edit_json(tmp_path / "generation_config.json", eos_token_id=9)
    assert GlmConfig.from_directory(tmp_path).eos_token_ids == (9,)


def test_every_published_glm_config_is_understood(shared_data: Path) -> None:
    known = json.loads((shared_data / "configs" / "checkpoints.json").read_text())
    served = {n: e["config"] for n, e in known.items() if e.get("config", {}).get("model_type") == "glm"}
    assert served
    for raw in served.values():
        assert GlmConfig.from_mapping(raw).num_hidden_layers == raw["num_hidden_layers"]


def test_a_scaling_can_be_put_over_a_config() -> None:
    """A v4 mapping names its type `type`; the `rope_type` of the config it goes over must not win."""
    config = GlmConfig(rope_theta=5e6, max_position_embeddings=32768).replace(
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    )
    assert (config.rope_parameters["rope_type"], config.rope_theta, config.context_limit) == ("yarn", 5e6, 131072)


@pytest.mark.parametrize(("pad", "ids"), [(9, (7, 8, 9)), (None, (7, 8)), (-1, (7, 8))])
def test_special_ids_are_those_that_name_tokens(pad: int | None, ids: tuple[int, ...]) -> None:
    """A padding id below 0 is a row counted from the end."""
    assert GlmConfig(eos_token_id=[7, 8], pad_token_id=pad).special_ids == ids
