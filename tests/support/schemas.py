"""JSON schemas from the world: of types that the `openai` package defines, as its client sends them for strict output.

They nest, refer, recurse and choose between many: what people hand to `response_format`.
"""

import importlib
import json
import pkgutil
from collections.abc import Iterator
from functools import cache
from typing import Any

import pydantic

PACKAGES = ("chat", "fine_tuning", "vector_stores", "evals", "graders", "audio", "realtime", "webhooks")
"""A quarter of the types; all of them take half a minute to import."""


@cache
def real_schemas(packages: tuple[str, ...] = PACKAGES) -> dict[str, dict[str, Any]]:
    """By the name of the type; of those with the same text, the first."""
    by_text: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, model in (found for package in packages for found in _models(f"openai.types.{package}")):
        if (schema := _strict_schema(model)) is not None:
            by_text.setdefault(json.dumps(schema), (name, schema))
    return dict(by_text.values())


def _models(package: str) -> Iterator[tuple[str, type[pydantic.BaseModel]]]:
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        for name, value in sorted(vars(importlib.import_module(found.name)).items()):
            if isinstance(value, type) and issubclass(value, pydantic.BaseModel) and value.__module__ == found.name:
                yield f"{found.name.removeprefix('openai.types.')}.{name}", value


def _strict_schema(model: type[pydantic.BaseModel]) -> dict[str, Any] | None:
    """None of types that have no schema: those that are generic, or hold what JSON has not."""
    from openai.lib._pydantic import to_strict_json_schema

    try:
        return to_strict_json_schema(model)
    except (pydantic.PydanticUserError, TypeError, ValueError, AttributeError):
        return None
