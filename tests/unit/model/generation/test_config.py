import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glm_cluster.errors import CheckpointError, ConfigError
from glm_cluster.model.generation.config import DEFAULTS, FIELDS, UNIMPLEMENTED, WITHOUT_EFFECT, GenerationConfig

IDS = SimpleNamespace(bos_token_id=None, eos_token_id=[1, 2], pad_token_id=0)
PUBLISHED = {
    "do_sample": True,
    "eos_token_id": [151329, 151336, 151338],
    "max_length": 128000,
    "pad_token_id": 151329,
    "temperature": 0.8,
    "top_p": 0.8,
    "transformers_version": "4.44.0",
}


def written(directory: Path, text: str) -> Path:
    (directory / "generation_config.json").write_text(text)
    return directory


def test_without_a_file_the_model_configuration_gives_the_ids(tmp_path):
    config = GenerationConfig.from_directory(tmp_path, IDS)
    assert config == GenerationConfig(eos_token_id=[1, 2], pad_token_id=0)


def test_a_file_is_the_only_source_where_there_is_one(tmp_path):
    config = GenerationConfig.from_directory(written(tmp_path, '{"top_k": 3}'), IDS)
    assert (config.top_k, config.eos_token_ids, config.pad_token_id) == (3, (), None)


def test_a_published_file_survives_the_round_trip(tmp_path):
    config = GenerationConfig.from_directory(written(tmp_path, json.dumps(PUBLISHED)), IDS)
    assert config.extra == {"transformers_version": "4.44.0"}
    config.save(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "generation_config.json").read_text()) == PUBLISHED
    assert GenerationConfig.from_directory(tmp_path / "copy", IDS) == config


def test_it_is_read_by_itself_with_changes(tmp_path):
    config = GenerationConfig.from_pretrained(written(tmp_path, json.dumps(PUBLISHED)), top_p=0.5, num_beams=2)
    assert (config.temperature, config.top_p, config.extra["num_beams"]) == (0.8, 0.5, 2)


def test_by_itself_it_takes_a_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no .*generation_config.json; make a GenerationConfig"):
        GenerationConfig.from_pretrained(tmp_path)


def test_hf_reads_what_is_saved(tmp_path):
    from transformers import GenerationConfig as HfConfig

    ours = GenerationConfig.from_dict({**PUBLISHED, "sequence_bias": {(3, 4): -2.0}, "suppress_tokens": [5]})
    ours.save(tmp_path)
    theirs = HfConfig.from_pretrained(tmp_path)
    assert theirs.sequence_bias == [[[3, 4], -2.0]]
    for name in ("do_sample", "eos_token_id", "max_length", "pad_token_id", "temperature", "top_p", "suppress_tokens"):
        assert getattr(theirs, name) == getattr(ours, name)


def test_what_hf_saves_is_read(tmp_path):
    from transformers import GenerationConfig as HfConfig

    HfConfig(do_sample=True, top_k=7, min_p=0.1, eos_token_id=4, my_own_key="kept").save_pretrained(tmp_path)
    ours = GenerationConfig.from_directory(tmp_path, IDS)
    assert (ours.do_sample, ours.top_k, ours.min_p, ours.eos_token_ids) == (True, 7, 0.1, (4,))
    assert ours.to_dict()["my_own_key"] == "kept"


def test_every_key_of_hf_is_implemented_refused_or_named_as_without_effect():
    from transformers import GenerationConfig as HfConfig

    # Of another kind of model, or metadata, or HF's own deprecated hatch.
    elsewhere = {"transformers_version", "continuous_batching_config"}
    keys = {key for key in HfConfig().to_dict() if not key.startswith("_")}
    assert keys - FIELDS - UNIMPLEMENTED.keys() - WITHOUT_EFFECT == elsewhere


def test_the_defaults_are_hf_s():
    from transformers import GenerationConfig as HfConfig

    theirs = HfConfig._get_default_generation_params()
    assert DEFAULTS.to_dict() == {name: theirs[name] for name in DEFAULTS.to_dict()}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "0.8"),
        ("temperature", True),
        ("top_k", 1.5),
        ("max_new_tokens", "8"),
        ("do_sample", 1),
        ("eos_token_id", "</s>"),
        ("eos_token_id", []),
        ("eos_token_id", [1, None]),
        ("pad_token_id", [0]),
        ("suppress_tokens", 3),
        ("bad_words_ids", [3]),
        ("bad_words_ids", []),
        ("bad_words_ids", [[]]),
        ("sequence_bias", [[3, 1.0]]),
        ("sequence_bias", {}),
        ("exponential_decay_length_penalty", [1]),
    ],
)
def test_a_wrong_type_is_refused_by_name(name: str, value: Any, tmp_path: Path):
    with pytest.raises(ConfigError, match=name) as caught:
        GenerationConfig.from_dict({name: value})
    assert caught.value.param == name
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {name}"):
        GenerationConfig.from_directory(written(tmp_path, json.dumps({name: value})), IDS)


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_broken_file_is_refused_by_path(text: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        GenerationConfig.from_directory(written(tmp_path, text), IDS)


def test_null_means_unset():
    assert GenerationConfig.from_dict({"top_k": None}) == GenerationConfig()


def test_eos_ids_come_as_a_tuple_however_they_were_given():
    assert GenerationConfig(eos_token_id=3).eos_token_ids == (3,)
    assert GenerationConfig(eos_token_id=[3, 4]).eos_token_ids == (3, 4)
    assert GenerationConfig().eos_token_ids == ()


def test_filling_keeps_what_is_set_and_changing_replaces_it_by_none_too():
    base = GenerationConfig.from_dict({"temperature": 0.8, "top_k": 5, "num_beams": 4, "other": 1})
    filled = GenerationConfig.from_dict({"top_k": 9, "num_beams": 1}).filled(base)
    assert filled.to_dict() == {"temperature": 0.8, "top_k": 9, "num_beams": 1, "other": 1}
    assert filled.changed({"temperature": None, "other": 2}).to_dict() == {"top_k": 9, "num_beams": 1, "other": 2}


@pytest.mark.parametrize("name", sorted(UNIMPLEMENTED))
def test_what_is_not_implemented_is_refused_by_name_unless_neutral(name: str):
    for neutral in UNIMPLEMENTED[name]:
        GenerationConfig.from_dict({name: neutral}).refuse_unimplemented()
    with pytest.raises(ConfigError, match=name) as caught:
        GenerationConfig.from_dict({name: "anything"}).refuse_unimplemented()
    assert caught.value.param == name
