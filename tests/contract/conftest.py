"""The checkout, and a validator that treats a manifest as the Kubernetes API server does before it meets a schema."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

Validate = Callable[[dict[str, Any]], list[str]]


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def modules(root: Path) -> dict[str, ast.Module]:
    """Every module of the package that people write, parsed."""
    paths = [path for path in (root / "glm_cluster").rglob("*.py") if "_pb2" not in path.name]
    return {module_name(path.relative_to(root)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@pytest.fixture(scope="session")
def manifests(root: Path) -> dict[str, dict[str, Any]]:
    return {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (root / "k8s").glob("*.yaml")}


@pytest.fixture(scope="session")
def ray_service_errors(shared_data: Path) -> Validate:
    """What the API server would find wrong with a RayService, by path."""
    path = shared_data / "kuberay-crd" / "ray.io_rayservices.yaml"
    crd = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    stored = next(version for version in crd["spec"]["versions"] if version["storage"])
    schema = strict(stored["schema"]["openAPIV3Schema"])
    validator = jsonschema.Draft202012Validator(schema)

    def errors(manifest: dict[str, Any]) -> list[str]:
        document = admitted(manifest, schema)
        found = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
        return found + list(repeated(document, schema, "$"))

    return errors


def strict(schema: Any) -> Any:
    """The structural schema as JSON Schema: unknown keys refused, int-or-string understood."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if isinstance(result.get("properties"), dict) and result.get("type") == "object":
        result.setdefault("additionalProperties", False)
    if result.get("x-kubernetes-int-or-string") is True:
        result["type"] = ["integer", "string"]
    elif result.get("nullable") is True and isinstance(result.get("type"), str):
        result["type"] = [result["type"], "null"]
    return result


def admitted(value: Any, schema: dict[str, Any]) -> Any:
    """A copy of `value` with nulls pruned and defaults set, as the API server stores it."""
    if isinstance(value, list):
        return [admitted(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    others = schema.get("additionalProperties")
    others = others if isinstance(others, dict) else {}
    kept = {key: item for key, item in value.items() if item is not None or properties.get(key, {}).get("nullable")}
    defaults = {key: inner["default"] for key, inner in properties.items() if "default" in inner}
    return {key: admitted(item, properties.get(key, others)) for key, item in (defaults | kept).items()}


def repeated(value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
    """Entries that share their keys in a list that is a map, such as two variables of one name."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from repeated(item, schema.get("properties", {}).get(key, {}), f"{at}.{key}")
    elif isinstance(value, list):
        names = schema.get("x-kubernetes-list-map-keys", [])
        seen = [tuple(item.get(name) for name in names) for item in value] if names else []
        yield from (f"{at}: {keys} is there twice" for keys in sorted(set(seen), key=str) if seen.count(keys) > 1)
        for index, item in enumerate(value):
            yield from repeated(item, schema.get("items", {}), f"{at}[{index}]")


@pytest.fixture(scope="session")
def readme_blocks(root: Path) -> list[tuple[str, str]]:
    """(language, text) of the README's code blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (root / "README.md").read_text(encoding="utf-8"), re.M | re.S)
