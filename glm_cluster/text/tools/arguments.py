"""The arguments of a call: JSON, or text that its tool's schema says how to read.

Knows the keywords of JSON schema that tell a string from another value. Refuses to validate anything.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

_PYTHON = {"True": True, "False": False, "None": None}  # what models write for JSON's words at times
_MOST_NESTED = 8  # schemas of alternatives inside one another
_MOST_JSON = 256  # objects and arrays inside one another
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"')


def is_json_object(text: str) -> bool:
    """Whether `text` is a JSON object and no more."""
    try:
        return isinstance(_loads(text), dict)
    except ValueError:
        return False


def argument(text: str, schema: object) -> object:
    """The value that `text` stands for: as it is for a schema of strings, else the JSON that it spells, if it does.

    Where a schema allows strings and something else, JSON that is neither stays text.
    """
    types = types_of_schema(schema)
    if types == {"string"}:
        return text
    try:
        value = _PYTHON[text.strip()] if text.strip() in _PYTHON else _loads(text)
    except ValueError:
        return text
    if "string" in types and types.isdisjoint(_types_of(value)):
        return text
    return value


def _loads(text: str) -> Any:
    """JSON, of which NaN is none and nothing so deep that the next reader would fail; else ValueError."""
    if _depth(text) > _MOST_JSON:
        raise ValueError("too deep")
    return json.loads(text, parse_constant=_refuse, parse_float=_finite)


def _depth(text: str) -> int:
    """How many brackets are open at most."""
    if text.count("[") + text.count("{") <= _MOST_JSON:
        return 0
    depth = deepest = 0
    for bracket in re.findall(r"[][{}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{number} is too large")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def types_of_schema(schema: object, depth: int = 0) -> set[str]:
    """The names of the JSON types that a schema allows; empty if it does not say."""
    if not isinstance(schema, Mapping) or depth > _MOST_NESTED:
        return set()
    if isinstance(named := schema.get("type"), str):
        return {named}
    if isinstance(named, list):
        return {name for name in named if isinstance(name, str)}
    if isinstance(values := schema.get("enum"), list):
        return {name for value in values for name in _types_of(value)}
    if "const" in schema:
        return _types_of(schema["const"])
    found: set[str] = set()
    for keyword in ("anyOf", "oneOf", "allOf"):
        if isinstance(alternatives := schema.get(keyword), list):
            found.update(*(types_of_schema(one, depth + 1) for one in alternatives))
    return found


def _types_of(value: object) -> set[str]:
    """The names that a schema may call a value's type by."""
    if isinstance(value, float):
        return {"number", "integer"} if value.is_integer() else {"number"}
    return set(_NAMES.get(type(value), ()))


_NAMES: Mapping[type, tuple[str, ...]] = {
    type(None): ("null",),
    bool: ("boolean",),
    int: ("integer", "number"),
    str: ("string",),
    list: ("array",),
    dict: ("object",),
}
