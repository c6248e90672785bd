"""What generators of schemas leave behind, and what only looks like it."""

from typing import Any

import llguidance
import pytest

from glm_cluster.text.grammar.cleaning import FORMATS, cleaned
from glm_cluster.text.grammar.scrutiny import grammar_fault

OF_JSON_SCHEMA = (
    *("date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6"),
    *("uri", "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer"),
    *("relative-json-pointer", "regex"),
)
OF_GENERATORS = (
    *("path", "file-path", "directory-path", "binary", "password", "base64", "base64url", "json-string", "uuid4"),
    *("ipv4network", "ipv6network", "ipv4interface", "ipvanyaddress", "byte", "int32", "int64", "float", "double"),
    *("multi-host-uri", "cidrv4", "cidrv6", "emoji", "nanoid", "cuid2", "ulid", "e164", "jwt", "time-delta"),
)


@pytest.mark.parametrize("name", [*OF_JSON_SCHEMA, *OF_GENERATORS])
def test_a_format_is_known_if_the_library_knows_it(name: str) -> None:
    fault = grammar_fault({"json_schema": {"type": "string", "format": name}})
    assert ("Unknown format" in fault) is (name not in FORMATS)
    schema = {"type": "string", "format": name}
    assert cleaned(schema) == (schema if name in FORMATS else {"type": "string"})


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_library_keeps_to_what_it_knows(name: str) -> None:
    grammar = llguidance.LLMatcher.grammar_from_json_schema({"type": "string", "format": name})
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
    text = b'"!"'
    assert matcher.try_consume_tokens([*text]) < len(text)


@pytest.mark.parametrize(
    "nothing",
    [
        *({keyword: None} for keyword in ("required", "enum", "properties", "items", "pattern", "format", "type")),
        *({keyword: None} for keyword in ("minimum", "maxLength", "title", "$ref", "additionalProperties", "examples")),
        {"format": "path"},
        {"uniqueItems": False},
        *({"propertyNames": names} for names in (True, {}, {"type": "string"}, {"type": None, "description": "d"})),
        {"unevaluatedProperties": True},
        {"unevaluatedItems": {}},
        {"dependentRequired": {}},
        {"$schema": "http://json-schema.org/schema#"},
    ],
    ids=str,
)
def test_what_asks_for_nothing_is_left_out_wherever_it_stands(nothing: dict[str, Any]) -> None:
    kept = {"type": "object", "minProperties": 1}
    asked = {**nothing, **kept} if "type" not in nothing else {"minProperties": 1, **nothing}
    kept = {key: value for key, value in kept.items() if key in asked and asked[key] is not None}
    assert cleaned(asked) == kept
    inside = {"anyOf": [{"properties": {"format": asked}}, {"items": asked}], "$defs": {"enum": asked}}
    clean = {"anyOf": [{"properties": {"format": kept}}, {"items": kept}], "$defs": {"enum": kept}}
    assert cleaned(inside) == clean


@pytest.mark.parametrize(
    "something",
    [
        {"const": None},
        {"default": None},
        {"enum": ["a", None]},
        {"const": {"format": "path", "items": None}},
        {"enum": [{"format": "path"}, {"uniqueItems": False}]},
        {"examples": [{"format": "path"}], "default": {"format": "path"}},
        {"properties": {"format": {"type": "string"}, "enum": {}, "uniqueItems": False}},
        {"format": 5},
        {"uniqueItems": True},
        {"propertyNames": {"pattern": "^a"}},
        {"propertyNames": {"type": "string", "enum": ["a"]}},
        {"propertyNames": {"type": "integer"}},
        {"propertyNames": False},
        {"unevaluatedProperties": False},
        {"dependentRequired": {"a": ["b"]}},
        {"$schema": "http://json-schema.invalid/schema#"},
    ],
    ids=str,
)
def test_all_else_stays(something: dict[str, Any]) -> None:
    assert cleaned(something) == something


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("https://json-schema.org/draft-07/schema", "http://json-schema.org/draft-07/schema"),
        ("https://json-schema.org/draft-07/schema#", "http://json-schema.org/draft-07/schema"),
        ("http://json-schema.org/draft/2020-12/schema", "https://json-schema.org/draft/2020-12/schema"),
    ],
)
def test_a_dialect_is_named_in_one_way(name: str, known: str) -> None:
    assert cleaned({"$schema": name}) == {"$schema": known}
