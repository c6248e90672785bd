"""No setting and no request field without a reader: what nobody reads is refused, never ignored."""

import ast
from dataclasses import fields

from pydantic import BaseModel

from glm_cluster.api import inputs, openai
from glm_cluster.config import ClusterConfig, EngineConfig, Limits, ModelConfig
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
    settings = {field.name for cls in (EngineConfig, ModelConfig, ClusterConfig, Limits) for field in fields(cls)}
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
    unused = {f"{cls.__name__}.{name}" for cls in request_bodies() for name in cls.model_fields if name not in read}
    assert not unused, f"request fields nobody reads: {sorted(unused)}"


def test_requests_refuse_unknown_fields() -> None:
    assert not {cls.__name__ for cls in request_bodies() if cls.model_config.get("extra") != "forbid"}


def request_bodies() -> list[type[BaseModel]]:
    """What a client may send, on every route."""
    found = {
        cls
        for module in (openai, inputs)
        for name, cls in vars(module).items()
        if name.endswith("Request") and isinstance(cls, type) and issubclass(cls, BaseModel)
    }
    assert len(found) >= 5
    return list(found)
