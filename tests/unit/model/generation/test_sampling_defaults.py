"""What a checkpoint says of sampling: only what is written counts, and what an engine cannot take is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from glm_cluster.config import ModelConfig
from glm_cluster.errors import CheckpointError
from glm_cluster.model.generation.sampling_defaults import sampling_defaults
from glm_cluster.records import SamplingDefaults


def read(directory: Path, raw: object, **settings: str) -> SamplingDefaults:
    (directory / "generation_config.json").write_text(json.dumps(raw))
    return sampling_defaults(ModelConfig.from_mapping({"model": str(directory), **settings}))


def test_a_checkpoint_without_the_file_samples_as_openai_does(tmp_path: Path) -> None:
    assert sampling_defaults(ModelConfig.from_mapping({"model": str(tmp_path)})) == SamplingDefaults()


def test_glm_4_s_are_taken(tmp_path: Path, shared_data: Path) -> None:
    known = json.loads((shared_data / "configs" / "checkpoints.json").read_text())["generation_config"]
    published = known["glm-4-9b (chatglm repo)"]
    assert read(tmp_path, published) == SamplingDefaults(temperature=0.8, top_p=0.8)
    assert read(tmp_path, known["glm-4-9b-hf"]) == SamplingDefaults()


ALL = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}


def test_all_five_are_taken_and_no_other_key(tmp_path: Path) -> None:
    others = {"do_sample": True, "max_length": "8192", "presence_penalty": 1.5, "eos_token_id": 7}
    assert read(tmp_path, ALL | others) == SamplingDefaults(**ALL)


@pytest.mark.parametrize("do_sample", [True, False, None])
def test_values_count_whatever_do_sample_says(tmp_path: Path, do_sample: bool | None) -> None:
    assert read(tmp_path, {"do_sample": do_sample, "temperature": 0.6}) == SamplingDefaults(temperature=0.6)


def test_do_sample_alone_says_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, {"do_sample": False}) == SamplingDefaults()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (dict.fromkeys(ALL), SamplingDefaults()),
        ({"top_k": 0}, SamplingDefaults()),
        ({"top_k": -1}, SamplingDefaults()),
        ({"top_k": 1}, SamplingDefaults(top_k=1)),
        ({"temperature": 0}, SamplingDefaults(temperature=0.0)),
        ({"temperature": 1e-6}, SamplingDefaults(temperature=0.0)),  # some publish this for greedy
        ({"temperature": 1e-5}, SamplingDefaults(temperature=1e-5)),
        ({"temperature": 1}, SamplingDefaults(temperature=1.0)),
        ({"top_p": 1}, SamplingDefaults(top_p=1.0)),
        ({"min_p": 0}, SamplingDefaults(min_p=0.0)),
        ({"repetition_penalty": 1}, SamplingDefaults()),
    ],
)
def test_null_is_not_given_and_whole_numbers_are_numbers(
    tmp_path: Path, raw: dict[str, Any], expected: SamplingDefaults
) -> None:
    assert read(tmp_path, raw) == expected


BAD = {
    "temperature": (-0.1, 2.1, "0.8", True, [0.8], float("nan"), float("inf"), 10**400),
    "top_p": (-1e-300, -0.5, 1.01, "1", False, float("nan")),
    "top_k": (-2, 2**31, 1.0, 50.5, "50", True),
    "min_p": (-0.1, 1.1, {}, True),
    "repetition_penalty": (0, 0.001, 11, -1.0, "1.1"),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, some in BAD.items() for value in some])
def test_what_no_engine_takes_is_refused_by_file_and_key(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {name} must be .*sampling_defaults: openai"):
        read(tmp_path, {name: value})
    assert read(tmp_path, {name: value}, sampling_defaults="openai") == SamplingDefaults()


def test_a_refusal_says_what_may_stand_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="temperature must be a number from 0 to 2, not 3;"):
        read(tmp_path, {"temperature": 3})
    with pytest.raises(CheckpointError, match="top_p must be a number from 0 to 1, not -1;"):
        read(tmp_path, {"top_p": -1})
    with pytest.raises(CheckpointError, match=r"top_k must be a whole number from -1 to 2147483647, not 1\.5;"):
        read(tmp_path, {"top_k": 1.5})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json cannot be read as JSON"):
        sampling_defaults(ModelConfig.from_mapping({"model": str(tmp_path)}))


@pytest.mark.parametrize("task", ["classify", "classify-tokens", "embed"])
def test_models_that_answer_with_numbers_have_none(tmp_path: Path, task: str) -> None:
    assert read(tmp_path, {"temperature": "hot"}, task=task) == SamplingDefaults()


def test_openais_are_taken_where_the_settings_say_so(tmp_path: Path) -> None:
    assert read(tmp_path, ALL, sampling_defaults="openai") == SamplingDefaults()
