"""Serve config files: what a local run reads of them, and what it refuses by name."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from glm_cluster.deploy.files import IMPORT_PATH, SERVICERS, read_serve_file
from glm_cluster.errors import ConfigError

PLAIN: dict[str, Any] = {
    "http_options": {"host": "0.0.0.0", "port": 8100},
    "grpc_options": {"port": 9100, "grpc_servicer_functions": list(SERVICERS)},
    "applications": [{"name": "glm", "import_path": IMPORT_PATH, "args": {"model": "/m", "tp": 2}}],
}


def write(raw: object, folder: Path) -> Path:
    path = folder / "serve.yaml"
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw))
    return path


def test_reads_settings_and_ports(tmp_path: Path) -> None:
    file = read_serve_file(write(PLAIN, tmp_path))
    assert file.args == {"model": "/m", "tp": 2}
    assert (file.host, file.port, file.grpc_port) == ("0.0.0.0", 8100, 9100)


def test_absent_sections_say_nothing(tmp_path: Path) -> None:
    file = read_serve_file(write({"applications": PLAIN["applications"]}, tmp_path))
    assert (file.host, file.port, file.grpc_port) == (None, None, None)


def test_overrides_of_ours_become_settings(tmp_path: Path) -> None:
    raw = copy.deepcopy(PLAIN)
    scaling = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8, "upscale_delay_s": 2.0}
    raw["applications"][0]["deployments"] = [
        {"name": "GlmReplica", "autoscaling_config": scaling},
        {"name": "GlmIngress", "num_replicas": 2},
    ]
    assert read_serve_file(write(raw, tmp_path)).args == {"model": "/m", "tp": 2, "num_ingresses": 2, **scaling}


def test_fixed_replicas_become_both_bounds(tmp_path: Path) -> None:
    raw = copy.deepcopy(PLAIN)
    raw["applications"][0]["deployments"] = [{"name": "GlmReplica", "num_replicas": 3}]
    args = read_serve_file(write(raw, tmp_path)).args
    assert (args["min_replicas"], args["max_replicas"]) == (3, 3)


def several(*overrides: dict[str, object]) -> dict[str, Any]:
    models = [{"model": "/m/glm"}, {"model": "/m/t", "model_name": "our/topics", "task": "classify"}]
    application = {**PLAIN["applications"][0], "args": {"models": models}, "deployments": list(overrides)}
    return {"applications": [application]}


def test_overrides_address_the_deployment_of_one_of_several_models(tmp_path: Path) -> None:
    raw = several(
        {"name": "GlmReplica-our-topics", "autoscaling_config": {"max_replicas": 4}},
        {"name": "GlmReplica-glm", "num_replicas": 2},
        {"name": "GlmIngress", "num_replicas": 3},
    )
    args = read_serve_file(write(raw, tmp_path)).args
    assert args == {
        "models": [
            {"model": "/m/glm", "min_replicas": 2, "max_replicas": 2},
            {"model": "/m/t", "model_name": "our/topics", "task": "classify", "max_replicas": 4},
        ],
        "num_ingresses": 3,
    }


def test_several_models_need_no_overrides(tmp_path: Path) -> None:
    raw = several()
    assert read_serve_file(write(raw, tmp_path)).args == raw["applications"][0]["args"]


def test_which_of_several_models_is_meant_must_be_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no GlmReplica here, only GlmIngress, GlmReplica-glm, GlmReplica-our-topics"):
        read_serve_file(write(several({"name": "GlmReplica", "num_replicas": 2}), tmp_path))


def deployments(**override: object) -> dict[str, Any]:
    return {"applications": [{**PLAIN["applications"][0], "deployments": [override]}]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"http_option": {}}, "Ray Serve has no http_option"),
        ({"http_options": {"prot": 8100}}, r"Ray Serve has no http_options\.prot"),
        ({"http_options": {"port": "many"}}, "Ray Serve refuses it"),
        ({"http_options": {"request_timeout_s": 5}}, "http_options: request_timeout_s would have no effect"),
        ({"logging_config": {"encoding": "JSON"}}, "logging_config would have no effect"),
        ({"proxy_location": "Disabled"}, "proxy_location"),
        ({"grpc_options": {"port": 1, "grpc_servicer_functions": list(SERVICERS[:1])}}, "add_HealthServicer_to_server"),
        ({"applications": []}, "this file has 0"),
        ({"applications": [{"import_path": "ray.serve.llm:build_openai_app"}]}, "import_path must be"),
        ({"applications": [{"import_path": IMPORT_PATH, "route_prefix": "/glm"}]}, "route_prefix must be /"),
        ({"applications": [{"import_path": IMPORT_PATH, "runtime_env": {"pip": []}}]}, "runtime_env would have no"),
        (
            deployments(name="GlmReplica", max_ongoing_requests=5),
            r"GlmReplica\.max_ongoing_requests cannot be honoured",
        ),
        (deployments(name="Other", num_replicas=2), "there is no Other here, only GlmIngress, GlmReplica"),
        (
            deployments(name="GlmReplica-m", num_replicas=2),
            "there is no GlmReplica-m here, only GlmIngress, GlmReplica",
        ),
    ],
)
def test_refusals_name_the_file_and_the_key(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = write(PLAIN | change, tmp_path)
    with pytest.raises(ConfigError, match=sentence) as refusal:
        read_serve_file(path)
    assert refusal.value.message.startswith(str(path))


@pytest.mark.parametrize(("text", "sentence"), [("a: [", "is not YAML"), ("- 1", "mapping"), ("", "mapping")])
def test_what_is_no_config(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_serve_file(write(text, tmp_path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_serve_file(tmp_path / "nowhere.yaml")
