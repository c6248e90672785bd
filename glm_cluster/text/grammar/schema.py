"""A JSON schema as the library is to follow it: all that it says, or as much as can be followed.

Knows the library's options, and what it can make of keywords. Refuses to know where an answer has the schema's value.

JSON is written one way, as Python writes it (`{"a": 1, "b": [2]}`): a model that may choose its white space may also
never stop writing it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from glm_cluster.errors import InvalidRequest
from glm_cluster.text.grammar import limits
from glm_cluster.text.grammar.cleaning import cleaned
from glm_cluster.text.grammar.places import rewritten, schemas
from glm_cluster.text.grammar.scrutiny import Scrutiny

ADVICE = "leave it out, write it in another way, or send strict: false, by which what cannot be kept is left out"
_OPTIONS = "x-guidance"  # the library's own keyword, by which a schema would change the options
_WRITTEN = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_STRICT = {
    **_WRITTEN,
    "coerce_one_of": False,  # `anyOf` would let through what `oneOf` does not
    "lenient": False,  # a keyword that cannot be enforced is refused
}
_LOOSE = {**_WRITTEN, "coerce_one_of": True, "lenient": True}
_PATTERNS = 256  # that are looked at one by one, each for a millisecond
_THIRD = "json-schema.org/draft-03/"
_DIALECTS = {
    *(f"http://json-schema.org/draft-0{number}/schema" for number in (4, 6, 7)),
    *(f"https://json-schema.org/draft/{date}/schema" for date in ("2019-09", "2020-12")),
}


def strictly(schema: Mapping[str, Any]) -> dict[str, Any]:
    """All that the schema says, for the library to refuse what it cannot keep; or InvalidRequest."""
    for one in schemas(schema):
        _check_keywords(one)
    clean = cleaned(schema)
    limits.check_patterns(clean)
    return {**clean, _OPTIONS: _STRICT}


def loosely(schema: Mapping[str, Any], scrutiny: Scrutiny | None = None) -> dict[str, Any]:
    """As much of it as the library can keep, told keyword by keyword, and then property by property.

    What is at fault beside its properties is left as it is. `scrutiny`: of the request that it is a part of.
    """
    scrutiny = scrutiny or Scrutiny()
    loose = {**rewritten(cleaned(schema), _loosened), _OPTIONS: _LOOSE}
    if limits.has_many_named_patterns(loose):
        loose = rewritten(loose, _without_named_patterns)
    if limits.has_many_meeting(loose):
        loose = rewritten(loose, _without_pattern)
    if not scrutiny.fault(loose):
        return loose
    patterns = islice(dict.fromkeys(_patterns(loose)), _PATTERNS)
    kept = {pattern for pattern in patterns if _is_kept(pattern, scrutiny)}
    loose = rewritten(loose, lambda one: _without_patterns(one, kept))
    return _mended(loose, scrutiny) if scrutiny.fault(loose) else loose


def _mended(schema: dict[str, Any], scrutiny: Scrutiny) -> dict[str, Any]:
    """Anything for each property at fault; the schema itself if its fault is another."""
    properties = schema.get("properties", {})
    mended = {**schema, "properties": {name: {} for name in properties}}
    if not properties or scrutiny.fault(mended):
        return schema
    waiting = [list(properties)]
    while waiting and not scrutiny.is_spent:
        names = waiting.pop()
        tried = {**mended, "properties": {**mended["properties"], **{name: properties[name] for name in names}}}
        if not scrutiny.fault(tried):
            mended = tried
        elif (half := len(names) // 2) > 0:
            waiting += names[half:], names[:half]
    return mended


def _check_keywords(schema: Mapping[str, Any]) -> None:
    if _OPTIONS in schema:
        raise InvalidRequest(f"the keyword {_OPTIONS!r} is not supported; leave it out")
    if isinstance(schema.get("required"), bool) and isinstance(schema.get("type"), str | list):
        raise InvalidRequest("required is a list of names, beside the properties; write it so, or leave it out")
    if "prefixItems" in schema and isinstance(schema.get("items"), list):
        raise InvalidRequest("items is one schema beside prefixItems; write it so, or leave one of them out")
    if "additionalProperties" in schema and schema["additionalProperties"] is None:
        raise InvalidRequest("additionalProperties is a schema, true or false; write it so, or leave it out")
    if isinstance(name := schema.get("$schema"), str) and _THIRD in name:
        raise InvalidRequest("JSON schemas of draft 3 are not supported; write it in a later draft")
    for pattern in _patterns_of(schema):
        limits.check_regex(pattern)


def _patterns(schema: Mapping[str, Any]) -> Iterator[str]:
    return (pattern for one in schemas(schema) for pattern in _patterns_of(one))


def _patterns_of(schema: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(pattern := schema.get("pattern"), str):
        yield pattern
    if isinstance(by_pattern := schema.get("patternProperties"), Mapping):
        yield from by_pattern


def _is_kept(pattern: str, scrutiny: Scrutiny) -> bool:
    if len(pattern) > limits.REGEX_BYTES:
        return False
    return not scrutiny.fault({"type": "string", "pattern": pattern, _OPTIONS: _LOOSE})


def _without_patterns(schema: Mapping[str, Any], kept: set[str]) -> Mapping[str, Any]:
    said = dict(schema)
    if isinstance(pattern := said.get("pattern"), str) and pattern not in kept:
        del said["pattern"]
    by_pattern = said.get("patternProperties", {})
    if by_pattern.keys() <= kept:
        return said
    return _opened(said) | {"patternProperties": {name: one for name, one in by_pattern.items() if name in kept}}


def _without_pattern(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return {keyword: value for keyword, value in schema.items() if keyword != "pattern"}


def _without_named_patterns(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "patternProperties" not in schema:
        return schema
    return {keyword: value for keyword, value in _opened(schema).items() if keyword != "patternProperties"}


def _opened(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is said of all other names, which would be said of those too that something left out was said of."""
    return {keyword: value for keyword, value in schema.items() if keyword not in _OF_OTHERS}


def _loosened(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Without keywords whose values are none that the library could read, or that nothing could match."""
    said = {keyword: value for keyword, value in schema.items() if _READABLE.get(keyword, _is_anything)(value)}
    if any(keyword in schema and keyword not in said for keyword in ("properties", "patternProperties")):
        said = _opened(said)
    for keyword in _NAMED:
        if keyword in said:
            said[keyword] = {name: one if _is_schema(one) else {} for name, one in said[keyword].items()}
    for keyword in _LISTED:
        if isinstance(listed := said.get(keyword), list):
            said[keyword] = [one if _is_schema(one) else {} for one in listed]
    if "required" in said:
        said["required"] = [name for name in said["required"] if isinstance(name, str) and _may_be_there(name, said)]
    return said


def _may_be_there(name: str, schema: Mapping[str, Any]) -> bool:
    is_closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    return not is_closed or name in schema.get("properties", {})


def _is_anything(value: object) -> bool:
    return True


def _is_nothing(value: object) -> bool:
    return False


def _is_schema(value: object) -> bool:
    return isinstance(value, Mapping | bool)


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_list(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_type(value: object) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in _TYPES for name in names)


_ADDRESS = re.compile(r"[^\s<>\"{}|\\^`]*")
_TYPES = {"string", "number", "integer", "boolean", "array", "object", "null"}
_OF_OTHERS = {"additionalProperties", "unevaluatedProperties"}
_LISTED = ("anyOf", "allOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_READABLE: Mapping[str, Callable[[object], bool]] = {
    _OPTIONS: _is_nothing,
    "$schema": lambda value: isinstance(value, str) and value in _DIALECTS,
    "$id": lambda value: isinstance(value, str) and _ADDRESS.fullmatch(value) is not None,
    "type": _is_type,
    "items": lambda value: _is_schema(value) or isinstance(value, list),
    **dict.fromkeys(("required", "prefixItems"), lambda value: isinstance(value, list)),
    "multipleOf": lambda value: _is_number(value) and value > 0,  # type: ignore[operator]
    **dict.fromkeys(_NAMED, _is_object),
    **dict.fromkeys(("additionalProperties", "additionalItems"), _is_schema),
    **dict.fromkeys(("enum", "anyOf", "allOf", "oneOf"), _is_list),
    **dict.fromkeys(("pattern", "format", "$ref"), _is_text),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _is_count),
    **dict.fromkeys(("minimum", "maximum"), _is_number),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), lambda value: isinstance(value, int | float)),
}
