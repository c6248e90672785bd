"""What the front is told of each model, and what a replica asks its engine for."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from glm_cluster.config import ModelConfig
from glm_cluster.deploy.ingress import engine_facts, model_info
from glm_cluster.deploy.replica import probe_request
from glm_cluster.model.config import GlmConfig
from glm_cluster.records import EncodeRequest, GenerationRequest, SamplingDefaults, Task

STORED = GlmConfig.from_mapping(
    {
        "max_position_embeddings": 100,
        "eos_token_id": [7, 8],
        "pad_token_id": 9,
        "id2label": {"0": "spam", "1": "ham"},
        "problem_type": "multi_label_classification",
    }
)


def _model(task: Task, **changes: object) -> ModelConfig:
    return ModelConfig.from_mapping({"model": "/m/x", "task": task, **changes})


@pytest.mark.parametrize(
    ("task", "labels", "problem_type"),
    [
        ("generate", (), None),
        ("classify", ("spam", "ham"), "multi_label_classification"),
        ("classify-tokens", ("spam", "ham"), None),
        ("embed", (), None),
    ],
)
def test_labels_are_a_classifiers(task: Task, labels: tuple[str, ...], problem_type: str | None):
    info = model_info(_model(task), STORED, created=5)
    assert (info.name, info.task, info.labels, info.problem_type) == ("x", task, labels, problem_type)
    assert (info.vocab_size, info.eos_token_ids, info.created) == (STORED.vocab_size, (7, 8), 5)


@pytest.mark.parametrize(("asked", "limit"), [(None, 100), (60, 60), (1000, 100)])
def test_the_length_is_the_smaller_of_what_is_asked_and_what_the_model_can(asked: int | None, limit: int):
    assert model_info(_model("embed", max_model_len=asked), STORED, created=0).max_model_len == limit


@pytest.mark.parametrize(
    ("changes", "temperature"), [({}, 0.5), ({"sampling_defaults": "openai"}, 1.0), ({"task": "embed"}, 1.0)]
)
def test_sampling_is_as_the_checkpoint_says(tmp_path: Path, changes: dict[str, str], temperature: float):
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.5}')
    model = ModelConfig.from_mapping({"model": str(tmp_path), **changes})
    assert model_info(model, STORED, created=0).sampling_defaults == SamplingDefaults(temperature=temperature)


@pytest.mark.parametrize("task", ["classify", "classify-tokens", "embed"])
def test_an_encoder_is_probed_by_a_prompt(task: Task):
    assert probe_request(task, "p") == EncodeRequest(request_id="p", prompt=(0,), pooling="last")


def test_a_generator_is_probed_by_a_token():
    request = probe_request("generate", "p")
    assert isinstance(request, GenerationRequest)
    assert request.sampling.max_tokens == 1


@pytest.mark.parametrize(
    ("asked", "kept", "dtype"),
    [
        ("float32", "bfloat16", "float32"),
        ("auto", "bfloat16", "bfloat16"),
        ("auto", "float16", "bfloat16"),  # what the loader makes of half precision
        ("auto", None, "auto"),
    ],
)
def test_facts_are_the_settings_with_auto_resolved(asked: str, kept: str | None, dtype: str):
    model = _model("generate", dtype=asked, device="cpu", tp=3, max_replicas=2, max_running=5, model_name="a/b")
    facts = engine_facts(model, GlmConfig.from_mapping({"dtype": kept}))
    assert (facts.dtype, facts.device, facts.tensor_parallel_size) == (dtype, "cpu", 3)
    assert (facts.max_replicas, facts.max_running) == (2, 5)
    assert "/m/x" not in str(facts)


def test_versions_are_found_without_torch():
    code = (
        "import sys; from glm_cluster.deploy.ingress import versions; print(versions().torch, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert out == [version("torch"), "False"]
