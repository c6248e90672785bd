"""No setting and no request field without a reader: what nobody reads is refused, never ignored."""

import ast
from dataclasses import fields

from pydantic import BaseModel

from glm_cluster.api import openai
from glm_cluster.config import ClusterConfig, EngineConfig, ModelConfig
from glm_cluster.records import (
    Encoded,
    EncodeRequest,
    GenerationRequest,
    ModelInfo,
    ReplicaLoad,
    SamplingParams,
    TokenEvent,
)

Modules = dict[str, ast.Module]


def attributes_read(modules: Modules, *, outside: str) -> set[str]:
    """Every attribute name that some module other than `outside` reads."""
    return {
        node.attr
        for module, tree in modules.items()
        if module != outside
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def test_every_setting_has_a_reader(modules: Modules) -> None:
    settings = {field.name for cls in (EngineConfig, ModelConfig, ClusterConfig) for field in fields(cls)}
    unused = settings - attributes_read(modules, outside="glm_cluster.config")
    assert not unused, f"settings nobody reads: {sorted(unused)}"


def test_every_record_field_has_a_reader(modules: Modules) -> None:
    records = (SamplingParams, GenerationRequest, EncodeRequest, Encoded, TokenEvent, ReplicaLoad, ModelInfo)
    unused = {f"{cls.__name__}.{field.name}" for cls in records for field in fields(cls)} - {
        f"{cls.__name__}.{name}" for cls in records for name in attributes_read(modules, outside="glm_cluster.records")
    }
    assert not unused, f"record fields nobody reads: {sorted(unused)}"


def test_every_request_field_has_a_reader(modules: Modules) -> None:
    """Only names are compared: a field may hide behind a namesake, but not be without one."""
    read = attributes_read(modules, outside="")
    requests = [
        cls
        for cls in vars(openai).values()
        if isinstance(cls, type) and issubclass(cls, BaseModel) and cls.__name__.endswith("Request")
    ]
    assert requests
    unused = {f"{cls.__name__}.{name}" for cls in requests for name in cls.model_fields if name not in read}
    assert not unused, f"request fields nobody reads: {sorted(unused)}"


def test_requests_refuse_unknown_fields() -> None:
    requests = [cls for cls in vars(openai).values() if isinstance(cls, type) and issubclass(cls, BaseModel)]
    accepting = {
        cls.__name__
        for cls in requests
        if cls.__name__.endswith("Request") and cls.model_config.get("extra") != "forbid"
    }
    assert not accepting
