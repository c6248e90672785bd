"""JSON schemas as a careful client would have them, so that an answer ends however its model rambles.

Whatever keeps the bounds keeps the schema: they leave out, and never let in. No keys but those named (or 2 short ones),
at most 24 characters of text, 2 items of a list, integers of 4 digits; where anything may stand, one of these.
"""

from typing import Any

Schema = dict[str, Any]

_ANYTHING: Schema = {
    "anyOf": [
        {"type": "string", "maxLength": 24},
        {"type": "integer", "minimum": 0, "maximum": 9999},
        {"type": "boolean"},
        {"type": "null"},
    ]
}
_KEY = "^[a-z]{1,8}$"
_OF_TYPE = {
    "object": ("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_CHOICES = ("enum", "const")
_BRANCHES = ("anyOf", "oneOf", "allOf")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_ONE = ("items", "additionalProperties", "additionalItems")


def bounded(schema: Any) -> Any:
    """The schema with its bounds. A document's other keywords stay as they are."""
    if schema is True or (isinstance(schema, dict) and _is_free(schema)):
        kept = schema if isinstance(schema, dict) else {}
        return {**_inner(kept), **_ANYTHING}
    return _closed(_inner(schema)) if isinstance(schema, dict) else schema


def _is_free(schema: Schema) -> bool:
    return not schema.keys() & {
        "type",
        "$ref",
        *_CHOICES,
        *_BRANCHES,
        *(key for keys in _OF_TYPE.values() for key in keys),
    }


def _inner(schema: Schema) -> Schema:
    """The schemas within it bounded. Branches that only add to what stands beside them are left open."""
    own = dict(schema)
    for name in _MAPS:
        if isinstance(own.get(name), dict):
            own[name] = {key: bounded(one) for key, one in own[name].items()}
    for name in _ONE:
        if isinstance(own.get(name), dict):
            own[name] = bounded(own[name])
    for name in ("items", "prefixItems"):
        if isinstance(own.get(name), list):
            own[name] = [bounded(one) for one in own[name]]
    adds = any(own.keys() & keys for keys in map(set, _OF_TYPE.values()))
    for name in _BRANCHES:
        if isinstance(own.get(name), list):
            is_open = adds or name == "allOf"
            own[name] = [_inner(one) if is_open and isinstance(one, dict) else bounded(one) for one in own[name]]
    return own


def _closed(own: Schema) -> Schema:
    """Its own keywords bounded, with the type that they speak of if it names none."""
    if own.keys() & {"$ref", *_CHOICES}:
        return own
    own = _joined(own)
    if "type" not in own:
        spoken = [kind for kind, keys in _OF_TYPE.items() if own.keys() & set(keys)]
        if not spoken:
            return own
        own = {**own, "type": spoken[0]}
    kinds = own["type"] if isinstance(own["type"], list) else [own["type"]]
    for kind in kinds:
        own = _BOUNDS.get(kind, lambda same: same)(own)
    return own


def _joined(own: Schema) -> Schema:
    """With the names of all that objects of its parts may hold among its own."""
    parts = own.get("allOf")
    if not isinstance(parts, list) or not all(isinstance(one, dict) and "properties" in one for one in parts):
        return own
    names = {name: True for one in parts for name in one["properties"]}
    return {**own, "properties": {**names, **own.get("properties", {})}}


def _object(own: Schema) -> Schema:
    """Closed over its named keys where there are some; else a map of two."""
    given = own.get("required")
    required = given if isinstance(given, list) else []
    if named := own.get("properties"):
        named = {**{name: _ANYTHING for name in required}, **named}
        rest = {key: one for key, one in own.items() if key != "patternProperties"}
        return {**rest, "properties": named, "additionalProperties": False}
    if required or (own.get("additionalProperties") is False and not own.get("patternProperties")):
        return own
    if "patternProperties" not in own:
        values = own.get("additionalProperties", True)
        own = {**own, "patternProperties": {_KEY: _ANYTHING if values is True else values}}
    return {**own, "additionalProperties": False, "maxProperties": 2}


def _array(own: Schema) -> Schema:
    most = max(2, own.get("minItems", 0))
    return {"items": _ANYTHING, **own, "maxItems": min(most, own.get("maxItems", most))}


def _string(own: Schema) -> Schema:
    most = max(64 if own.keys() & {"pattern", "format"} else 24, own.get("minLength", 0))
    return {**own, "maxLength": min(most, own.get("maxLength", most))}


def _number(own: Schema) -> Schema:
    if not isinstance(own["type"], list):
        return {"minimum": 0, "maximum": 9999, **own, "type": "integer"}
    whole = dict.fromkeys("integer" if kind == "number" else kind for kind in own["type"])
    return {"minimum": 0, "maximum": 9999, **own, "type": list(whole)}


_BOUNDS = {"object": _object, "array": _array, "string": _string, "integer": _number, "number": _number}
