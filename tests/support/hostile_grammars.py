"""Grammars made to cost: each is too much at a glance, or has to be bounded by whoever compiles and follows it."""

import json
from typing import Any

from glm_cluster.text.grammar import limits


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def doubling(keyword: str, levels: int) -> dict[str, Any]:
    """2 ** levels ways, in a few lines."""
    schemas = {
        f"a{i}": {keyword: [{"$ref": f"#/$defs/a{i - 1}"}, {"type": "array", "items": {"$ref": f"#/$defs/a{i - 1}"}}]}
        for i in range(1, levels + 1)
    }
    return {"$ref": f"#/$defs/a{levels}", "$defs": {"a0": {"type": "object"}, **schemas}}


REFUSED = {
    "a megabyte": ("json_schema", json.dumps({"properties": {f"p{i}": {"type": "string"} for i in range(30000)}})),
    "deep": ("json_schema", json.dumps(nested(40))),
    "very deep": ("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000),
    "deep in an unclosed list": ("json_schema", "[" * 20000),
    "many values": ("json_schema", json.dumps({"enum": list(range(limits.SCHEMA_NODES))})),
    "a long pattern": ("json_schema", json.dumps({"type": "string", "pattern": "a" * (limits.REGEX_BYTES + 1)})),
    "a long regex": ("regex", "a" * (limits.REGEX_BYTES + 1)),
    "a deep regex": ("regex", "(" * 2000 + "a" + ")" * 2000),
    "a deep lark": ("lark", "start: " + "(" * 20000 + '"a"' + ")" * 20000),
    "many choices": ("choice", json.dumps([str(i) for i in range(limits.CHOICES + 1)])),
    "every way to meet": (
        "json_schema",
        json.dumps(
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"x{i}{j}": {"type": "string"}}} for j in range(4)]} for i in range(12)
                ]
            }
        ),
    ),
    "overlapping keys": (
        "json_schema",
        json.dumps({"patternProperties": {f"^a{i}.*b": {"type": "string"} for i in range(60)}}),
    ),
}
BOUNDED = {
    "patterns that meet": ("json_schema", json.dumps({"allOf": [{"pattern": f"k{i}"} for i in range(40)]})),
    "many keys by patterns": (
        "json_schema",
        json.dumps({"patternProperties": {f"^k{i:04}$": {} for i in range(400)}}),
    ),
    "nested quantifiers": ("regex", "(((((a{1,9}){1,9}){1,9}){1,9}){1,9}){1,9}"),
    "a hundred thousand": ("regex", "a{1,100000}"),
    "a million": ("regex", "(a{1,1000}){1,1000}"),
    "letters of every script": ("regex", r"(\p{L}{1,500}\p{N}){1,500}"),
    "a backtracker's death": ("regex", "(a+)+(b|a)*c"),
    "exponential states": ("regex", "(.*a.{15}b)|(.*c.{15}d)|(.*e.{20}f)"),
    "ambiguous": ("lark", 'start: e\ne: e e | "a" | e e e | ""\n'),
    "many rules": (
        "lark",
        f"start: {' | '.join(f'r{i}' for i in range(500))}\n"
        + "".join(f'r{i}: "k{i}" /[a-z]{{1,9}}/\n' for i in range(500)),
    ),
    "a large enum": ("json_schema", json.dumps({"enum": [f"value number {i}" for i in range(2500)]})),
    "a long string": ("json_schema", json.dumps({"type": "string", "minLength": 1, "maxLength": 10**7})),
    "a long list": ("json_schema", json.dumps({"type": "array", "items": {"type": "integer"}, "minItems": 10**5})),
    "many optional keys": (
        "json_schema",
        json.dumps({"properties": {f"p{i}": {"type": "string"} for i in range(900)}}),
    ),
    "itself, for ever": ("json_schema", json.dumps({"properties": {"a": {"$ref": "#"}}, "required": ["a"]})),
    "two to the twentieth any": ("json_schema", json.dumps(doubling("anyOf", 20))),
    "two to the twentieth all": ("json_schema", json.dumps(doubling("allOf", 20))),
    "patterns": (
        "json_schema",
        json.dumps({"properties": {f"p{i}": {"type": "string", "pattern": f".*a.{{12}}{i}"} for i in range(100)}}),
    ),
}
