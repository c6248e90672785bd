"""What config.json may say, in HF's old and new spellings, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkpoints import edit_json

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


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"hidden_act": "mish"}, "mish"),
        ({"rope_scaling": {"type": "su", "factor": 4.0}}, "su"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_attention_heads": 32, "num_key_value_heads": 5}, "multiple"),
        ({"partial_rotary_factor": 0.01}, "partial_rotary_factor"),
        ({"rope_theta": True}, "rope_theta"),
        ({"eos_token_id": ["x"]}, "eos_token_id"),
    ],
)
def test_what_the_forward_cannot_do_is_refused(raw: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        GlmConfig.from_mapping(raw)


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
