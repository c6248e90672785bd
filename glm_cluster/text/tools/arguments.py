"""The arguments of a call: JSON, or text that its tool's schema says how to read.

Knows the keywords of JSON schema that tell a string from another value. Refuses to validate anything.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

_PYTHON = {"True": True, "False": False, "None": None}  # what models write for JSON's words at times
_MOST_NESTED = 8  # schemas of alternatives inside one another
_MOST_JSON = 256  # objects and arrays inside one another
# Strings that are never closed go on to the end, lest each quote in them be tried as the beginning of another.
_STRING = re.compile(r'"(?:[^"\\]|\\(?s:.)?)*+"?')
_STRING_OR_WORD = re.compile(r"""'(?:[^'\\]|\\(?s:.)?)*+'?|"(?:[^"\\]|\\(?s:.)?)*+"?|\b(?:True|False|None)\b""")
_ESCAPES = {"\\'": "'", '"': '\\"'}  # of Python's strings in JSON's
_BRANCHES = ("anyOf", "oneOf", "allOf")


def is_json_object(text: str) -> bool:
    """Whether `text` is a JSON object and no more."""
    try:
        return isinstance(_loads(text), dict)
    except ValueError:
        return False


def argument(text: str, schema: object, root: object = None) -> object:
    """The value that `text` stands for: as it is for a schema of strings, else the JSON that it spells, if it does.

    Where a schema allows strings and something else, JSON that is neither stays text; where it allows no strings, JSON
    inside a string is read too. `root`: the schema that its `$ref` points into.
    """
    types = types_of_schema(schema, root)
    if types == {"string"} or _is_listed(text, resolved(schema, root)):
        return text
    try:
        value = _value(text, may_be_string=not types or "string" in types)
    except ValueError:
        return text if "string" in types else text.strip()
    if "string" in types and types.isdisjoint(_types_of(value)):
        return text
    return value


def _is_listed(text: str, schema: object) -> bool:
    values = schema.get("enum") if isinstance(schema, Mapping) else None
    return isinstance(values, list) and text in values


def _value(text: str, *, may_be_string: bool) -> object:
    """What `text` spells in JSON, or near enough: in Python, or in a string where none belongs; else ValueError."""
    for read in (_plain, _python) if may_be_string else (_plain, _python, _escaped):
        try:
            value = read(text)
        except ValueError:
            continue
        return value if may_be_string else _inside(value)
    raise ValueError("no value")


def _plain(text: str) -> object:
    word = text.strip()
    return _PYTHON[word] if word in _PYTHON else _loads(text)


def _python(text: str) -> object:
    if not text.lstrip().startswith(("[", "{")):
        raise ValueError("no list and no dictionary")
    return _loads(_STRING_OR_WORD.sub(_as_json, text))


def _escaped(text: str) -> object:
    if isinstance(value := _inside(_loads(f'"{text.strip()}"')), str):
        raise ValueError("only a string")
    return value


def _inside(value: object) -> object:
    """What a string spells, quoted however often; itself if that is nothing."""
    if not isinstance(value, str):
        return value
    try:
        return _inside(_loads(value))
    except ValueError:
        return value


def _as_json(found: re.Match[str]) -> str:
    """A string or a word of Python's in JSON."""
    if (written := found[0]) in _PYTHON:
        return json.dumps(_PYTHON[written])
    if written.startswith('"'):
        return written
    return '"' + re.sub(r"""\\.|"|'""", lambda inner: _ESCAPES.get(inner[0], inner[0]), written[1:-1]) + '"'


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


def types_of_schema(schema: object, root: object = None, depth: int = 0) -> set[str]:
    """The names of the JSON types that a schema allows; empty if it does not say."""
    schema = resolved(schema, root)
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
    return {name for one in _branches(schema) for name in types_of_schema(one, root, depth + 1)}


def schema_of_property(name: str, root: object) -> object:
    """What an object's schema says of one of its properties: itself, else in its branches."""
    found = list(_schemas_of(name, root, root, 0))
    return {"anyOf": found} if len(found) > 1 else next(iter(found), None)


def _schemas_of(name: str, schema: object, root: object, depth: int) -> Iterator[object]:
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping) or depth > _MOST_NESTED:
        return
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and name in properties:
        yield properties[name]
        return
    for one in _branches(schema):
        yield from _schemas_of(name, one, root, depth + 1)


def resolved(schema: object, root: object) -> object:
    """The schema that `schema` refers to within `root`; itself if it refers to none."""
    for _ in range(_MOST_NESTED):
        if not isinstance(schema, Mapping) or not isinstance(reference := schema.get("$ref"), str):
            return schema
        schema = _referred(reference, root)
    return None


def _referred(reference: str, root: object) -> object:
    start, *steps = reference.split("/")
    place = root if start == "#" else None
    for step in steps:
        place = place.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(place, Mapping) else None
    return place


def _branches(schema: Mapping[str, Any]) -> Iterator[object]:
    for keyword in _BRANCHES:
        if isinstance(alternatives := schema.get(keyword), list):
            yield from alternatives


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
