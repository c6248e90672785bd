"""The arguments of a call: JSON, or text that its tool's schema says how to read.

Knows the keywords of JSON schema that tell a string from another value. Refuses to validate anything.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
_PYTHON = {"True": True, "False": False, "None": None}  # what models write for JSON's words at times
_MOST_FOLLOWED = 8  # references one after the other
_MOST_STEPS = 16  # of a reference
_MOST_JSON = 256  # objects and arrays inside one another
# Strings that are never closed go on to the end, lest each quote in them be tried as the beginning of another.
_STRING = re.compile(r'"(?:[^"\\]|\\(?s:.)?)*+"?')
_NO_JSON = re.compile(r"""'(?:[^'\\]|\\(?s:.)?)*+'?|"(?:[^"\\]|\\(?s:.)?)*+"?|\b(?:True|False|None)\b|,(?=\s*[\]}])""")
_ESCAPES = {"\\'": "'", '"': '\\"'}  # of Python's strings in JSON's
_BRANCHES = ("anyOf", "oneOf", "allOf")
_SURROGATE = re.compile("[\ud800-\udfff]")


def as_json(value: object) -> str:
    """The JSON of a value, as models write it. Half a surrogate pair, which no message can hold, stays an escape."""
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", json.dumps(value, ensure_ascii=False))


def is_json_object(text: str) -> bool:
    """Whether `text` is a JSON object and no more."""
    try:
        return isinstance(_loads(text, strict=True), dict)
    except ValueError:
        return False


class Arguments:
    """Reads the arguments of calls by the schema of their object, which it looks through once for each name."""

    def __init__(self, schema: object) -> None:
        self._schema = schema
        self._known: dict[str, _Property] = {}

    def is_string(self, name: str) -> bool:
        """Whether an argument stands for itself, so that its beginning can be read before its end has come."""
        return self._property(name).types == {"string"}

    def value(self, name: str, text: str) -> object:
        """The value that `text` stands for: itself where the schema allows strings alone, else the JSON that it spells.

        Where a schema allows strings and something else, JSON that is neither stays text; where it allows no strings,
        JSON inside a string is read too. What is nothing of the kind stays text.
        """
        found = self._property(name)
        may_be_string = not found.types or "string" in found.types
        if found.types == {"string"} or text in found.listed:
            return text
        try:
            value = _value(text, may_be_string=may_be_string)
        except ValueError:
            return text if "string" in found.types else text.strip()
        return text if "string" in found.types and found.types.isdisjoint(_types_of(value)) else value

    def _property(self, name: str) -> "_Property":
        if (found := self._known.get(name)) is None:
            found = self._known[name] = _property(name, self._schema)
        return found


@dataclass(frozen=True, slots=True)
class _Property:
    """What a schema says of an argument: the names of its types, and strings that it lists."""

    types: Set[str]
    listed: Set[str]


def _property(name: str, root: object) -> _Property:
    found = _said(root, root, lambda one: _property_in(name, one))
    schema = {"anyOf": [one for (one,) in found]}
    lists = _said(schema, root, lambda one: one.get("enum"))
    listed = {value for one in lists if isinstance(one, list) for value in one if isinstance(value, str)}
    return _Property(types_of_schema(schema, root), listed)


def _property_in(name: str, schema: Mapping[str, Any]) -> tuple[object] | None:
    properties = schema.get("properties")
    return (properties[name],) if isinstance(properties, Mapping) and name in properties else None


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
    return _loads(_NO_JSON.sub(_as_json, text))


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
    """A string or a word of Python's in JSON, and nothing for a comma behind the last item."""
    if (written := found[0]) == ",":
        return ""
    if written in _PYTHON:
        return json.dumps(_PYTHON[written])
    if written.startswith('"'):
        return written
    return '"' + re.sub(r"""\\.|"|'""", lambda inner: _ESCAPES.get(inner[0], inner[0]), written[1:-1]) + '"'


def _loads(text: str, *, strict: bool = False) -> Any:
    """JSON, of which NaN is none and nothing so deep that the next reader would fail; else ValueError.

    Unless it is `strict`, a line break in a string may stand for itself: models write code so.
    """
    if _depth(text) > _MOST_JSON:
        raise ValueError("too deep")
    return json.loads(text, strict=strict, parse_constant=_refuse, parse_float=_finite)


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


def types_of_schema(schema: object, root: object) -> set[str]:
    """The names of the JSON types that a schema within `root` allows; empty if it does not say."""
    return {name for names in _said(schema, root, _own_types) for name in names}


def _own_types(schema: Mapping[str, Any]) -> set[str]:
    if isinstance(named := schema.get("type"), str):
        return {named}
    if isinstance(named, list):
        return {name for name in named if isinstance(name, str)}
    if isinstance(values := schema.get("enum"), list):
        return {name for value in values for name in _types_of(value)}
    return _types_of(schema["const"]) if "const" in schema else set()


def _said(schema: object, root: object, says: Callable[[Mapping[str, Any]], T | None]) -> list[T]:
    """What a schema says, or else its branches. Each is asked once: they may refer in rings, and to the same often."""
    found: list[T] = []
    seen: set[int] = set()
    waiting = [schema]
    while waiting:
        one = resolved(waiting.pop(), root)
        if not isinstance(one, Mapping) or id(one) in seen:
            continue
        seen.add(id(one))
        if said := says(one):
            found.append(said)
        else:
            waiting.extend(_branches(one))
    return found


def resolved(schema: object, root: object) -> object:
    """The schema that `schema` refers to within `root`; itself if it refers to none."""
    for _ in range(_MOST_FOLLOWED):
        if not isinstance(schema, Mapping) or not isinstance(reference := schema.get("$ref"), str):
            return schema
        schema = referred(reference, root)
    return None


def referred(reference: str, root: object) -> object:
    """The schema that a reference leads to, which may be another reference; None if there is none."""
    start, *steps = reference.split("/", _MOST_STEPS)
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
