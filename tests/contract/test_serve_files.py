"""The Serve config files in deploy/serve, key by key: Serve itself takes a misspelt key for nothing at all."""

import ast
import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from glm_cluster.config import ClusterConfig
from glm_cluster.deploy.files import IMPORT_PATH, SERVICERS, read_serve_file, unknown_keys

NAMES = ("autoscale.yaml", "demo.yaml", "glm-4-9b-tp2.yaml", "tasks.yaml")


@pytest.fixture(params=NAMES)
def path(request: pytest.FixtureRequest, root: Path) -> Path:
    return root / "deploy" / "serve" / request.param


@pytest.fixture
def raw(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_every_file_is_named_here(root: Path) -> None:
    assert sorted(path.name for path in (root / "deploy" / "serve").iterdir()) == sorted(NAMES)


def test_serve_knows_every_key(raw: dict[str, Any]) -> None:
    assert list(unknown_keys(raw, ServeDeploySchema)) == []
    ServeDeploySchema.model_validate(raw)


@pytest.mark.parametrize(
    ("put", "found"),
    [
        (lambda raw: raw.update(http_option={}), "http_option"),
        (lambda raw: raw["http_options"].update(prot=1), "http_options.prot"),
        (lambda raw: raw["grpc_options"].update(grpc_servicer_function=[]), "grpc_options.grpc_servicer_function"),
        (lambda raw: raw["applications"][0].update(arg={}), "applications[0].arg"),
        (
            lambda raw: raw["applications"][0].update(deployments=[{"name": "GlmReplica", "num_replica": 2}]),
            "applications[0].deployments[0].num_replica",
        ),
        (
            lambda raw: raw["applications"][0].update(
                deployments=[{"name": "GlmReplica", "autoscaling_config": {"max_replica": 2}}]
            ),
            "applications[0].deployments[0].autoscaling_config.max_replica",
        ),
    ],
)
def test_misspelt_key_is_found(put: Any, found: str, raw: dict[str, Any]) -> None:
    """Serve validates each of these without a word."""
    broken = copy.deepcopy(raw)
    put(broken)
    assert list(unknown_keys(broken, ServeDeploySchema)) == [found]


def test_args_are_settings(raw: dict[str, Any]) -> None:
    (application,) = raw["applications"]
    config = ClusterConfig.from_mapping(application["args"])
    assert all(model.name in model.engine.model for model in config.models)


def test_local_run_honours_all_of_it(path: Path, raw: dict[str, Any]) -> None:
    file = read_serve_file(path)
    assert file.args == raw["applications"][0]["args"]
    assert (file.host, file.port, file.grpc_port) == ("0.0.0.0", 8000, 9000)


def test_import_path_exists(root: Path) -> None:
    module, _, function = IMPORT_PATH.partition(":")
    source = (root / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
    assert function in {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


def test_servicers_exist() -> None:
    import importlib

    for path in SERVICERS:
        module, _, function = path.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function))
