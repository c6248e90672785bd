"""Schemas that real clients send: strictly all of one, loosely what can be kept, and what comes out keeps to that."""

import datetime
import decimal
import ipaddress
import json
import pathlib
import uuid
from typing import Any, Literal

import jsonschema
import pydantic
import pytest
from support.random_author import random_output

from glm_cluster.errors import InvalidRequest
from glm_cluster.records import Grammar, GrammarKind
from glm_cluster.text.grammar.cleaning import cleaned
from glm_cluster.text.grammar.matcher import Matcher
from glm_cluster.text.grammar.places import rewritten, schemas
from glm_cluster.text.grammar.schema import loosely, strictly
from glm_cluster.text.grammar.scrutiny import fault
from glm_cluster.text.grammar.vocabulary import Vocabulary

STOP = 256
BYTES = Vocabulary.of_bytes()
ZOD_EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
DECIMAL = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"
LATEST = "https://json-schema.org/draft/2020-12/schema"


def zod(**properties: Any) -> dict[str, Any]:
    """As z.toJSONSchema writes an object of zod 4."""
    required = list(properties)
    return {
        "$schema": LATEST,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


class Inner(pydantic.BaseModel):
    name: Literal["a", "b"]
    counts: dict[str, int] = {}


class Plain(pydantic.BaseModel):
    """All of it can be kept."""

    where: pathlib.Path
    secret: pydantic.SecretStr
    raw: bytes
    network: ipaddress.IPv4Network
    address: ipaddress.IPv4Address
    encoded: pydantic.Base64Str
    when: datetime.datetime
    day: datetime.date
    id: uuid.UUID
    either: int | float
    inner: Inner
    note: str | None = None
    link: pydantic.AnyUrl
    price: decimal.Decimal


class WithSet(pydantic.BaseModel):
    tags: set[str]


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]


class WithUnion(pydantic.BaseModel):
    pet: Cat | Dog = pydantic.Field(discriminator="kind")


NULLS = {"type": "object", "properties": {"a": {"type": "string", "enum": None, "pattern": None}}, "required": None}
KEPT: dict[str, dict[str, Any]] = {
    "pydantic": Plain.model_json_schema(),
    "pydantic, as output": Plain.model_json_schema(mode="serialization"),
    "pydantic, a union by kind": WithUnion.model_json_schema(),
    "zod record": zod(scores={"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {}}),
    "zod formats": zod(a={"type": "string", "format": "cidrv4"}, b={"type": "string", "format": "email"}),
    "nulls": NULLS,
    "draft 7 by the other scheme": {"$schema": "https://json-schema.org/draft-07/schema", **NULLS},
    "null as a value": {"type": "object", "properties": {"a": {"const": None}, "b": {"enum": [None, 1]}}},
}
LOOSE: dict[str, tuple[dict[str, Any], str]] = {
    "pydantic set": (WithSet.model_json_schema(), "uniqueItems"),
    "decimal of pydantic 2.11": (
        zod(price={"anyOf": [{"type": "number"}, {"type": "string", "pattern": DECIMAL}]}),
        "look-around",
    ),
    "zod e-mail": (zod(to={"type": "string", "format": "email", "pattern": ZOD_EMAIL}), "look-around"),
    "zod record of certain names": (
        zod(a={"type": "object", "propertyNames": {"enum": ["x"]}, "additionalProperties": {"type": "integer"}}),
        "propertyNames",
    ),
    "zod number or integer": (zod(a={"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
    "not": ({"type": "string", "not": {"const": "a"}}, "not"),
    "if": ({"type": "object", "properties": {"a": {}}, "if": {}, "then": {"required": ["a"]}}, "if"),
    "a pattern of another dialect": ({"type": "string", "pattern": r"\Aa\Z"}, "regex parse error"),
    "a word's end": ({"type": "string", "pattern": r"a\b"}, "lookarounds"),
    "names by such a pattern": (
        {"type": "object", "patternProperties": {"^(?!a)": {"type": "integer"}}},
        "look-around",
    ),
    "a name that is no property": (zod(a={"type": "integer"}) | {"required": ["a", "b"]}, "required"),
    "at least one": ({"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1}, "min/maxProperties"),
    "a type of another language": ({"type": "object", "properties": {"a": {"type": "STRING"}}}, "STRING"),
    "required by itself": ({"type": "object", "properties": {"a": {"required": True, "type": "string"}}}, "required"),
    "another dialect": ({"$schema": "http://json-schema.invalid/schema", "type": "string"}, "json-schema.invalid"),
    "the third draft": ({"$schema": "http://json-schema.org/draft-03/schema#", "type": "string"}, "draft 3"),
    "a name with a space": ({"$id": "my schema", "type": "string"}, "URI"),
    "the library's own": ({"type": "object", "x-guidance": {"whitespace_flexible": True}}, "x-guidance"),
    "no numbers": ({"type": "array", "items": {"minimum": "1"}, "minItems": "2", "maxItems": -1}, "minI|maxI|minimum"),
    "no schemas": ({"type": "object", "properties": {"a": "string"}, "anyOf": [], "items": 5}, "schema|anyOf"),
}


def compiled(kind: GrammarKind, schema: dict[str, Any]) -> Matcher:
    return Matcher.compile(Grammar(kind, json.dumps(schema)), BYTES)


def answers(kind: GrammarKind, schema: dict[str, Any]) -> list[Any]:
    start = compiled(kind, schema)
    outputs = [random_output(start.fork(), (STOP,), seed=str(seed), most=4000) for seed in range(5)]
    ended = [json.loads(bytes(output)) for output in outputs if output is not None]
    assert ended
    return ended


def followed(schema: dict[str, Any]) -> dict[str, Any]:
    """What is left of it for the library, without what that leaves out in its turn."""
    unkept = {"x-guidance", "not", "if", "then", "uniqueItems", "propertyNames", "minProperties"}

    def kept(one: Any) -> dict[str, Any]:
        said = {key: value for key, value in one.items() if key not in unkept}
        return {"anyOf" if key == "oneOf" else key: value for key, value in said.items()}

    left: dict[str, Any] = rewritten(loosely(schema), kept)
    return left


@pytest.mark.parametrize("name", KEPT)
def test_what_asks_for_nothing_more_is_kept_strictly(name: str) -> None:
    for answer in answers("json_schema", KEPT[name]):
        jsonschema.validate(answer, cleaned(KEPT[name]))


@pytest.mark.parametrize("name", KEPT)
def test_loosely_it_means_the_same(name: str) -> None:
    for answer in answers("loose_schema", KEPT[name]):
        jsonschema.validate(answer, cleaned(KEPT[name]))


@pytest.mark.parametrize("name", LOOSE)
def test_what_cannot_be_kept_is_refused_strictly_and_left_out_loosely(name: str) -> None:
    schema, why = LOOSE[name]
    with pytest.raises(InvalidRequest, match=why):
        compiled("json_schema", schema)
    for answer in answers("loose_schema", schema):
        jsonschema.validate(answer, followed(schema))


def test_a_refusal_names_the_pattern_and_says_what_to_do() -> None:
    schema, _ = LOOSE["zod e-mail"]
    with pytest.raises(InvalidRequest) as caught:
        compiled("json_schema", schema)
    assert ZOD_EMAIL in caught.value.message
    assert caught.value.message.endswith("or send strict: false, by which what cannot be kept is left out")


def test_the_rest_is_kept_loosely() -> None:
    """The e-mail's format, and a pattern beside one that cannot be followed."""
    schema, _ = LOOSE["zod e-mail"]
    assert all("@" in answer["to"] for answer in answers("loose_schema", schema))
    odd = {"type": "array", "items": {"anyOf": [{"pattern": "^a{2}$"}, {"pattern": "(?=a)", "type": "string"}]}}
    assert loosely(odd)["items"] == {"anyOf": [{"pattern": "^a{2}$"}, {"type": "string"}]}


BROKEN = {
    "no JSON": "{",
    "no object": "[]",
    "deep": '{"items":' * 65 + "{}" + "}" * 65,
    "no such reference": '{"$ref": "#/nope"}',
    "a reference away": '{"$ref": "http://localhost/a.json"}',
    "nothing": '{"type": "integer", "minimum": 2, "maximum": 1}',
    "for ever": '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_refused_loosely_too_and_nothing_else_is_advised(name: str) -> None:
    for kind in ("json_schema", "loose_schema"):
        with pytest.raises(InvalidRequest) as caught:
            Matcher.compile(Grammar(kind, BROKEN[name]), BYTES)  # type: ignore[arg-type]
        assert "strict: false" not in caught.value.message


def test_a_fault_is_told_in_the_librarys_words() -> None:
    assert fault(strictly({"uniqueItems": True})) == 'Unimplemented keys: ["uniqueItems"]'
    assert fault(loosely({"uniqueItems": True})) == ""


def test_only_so_many_patterns_are_looked_at() -> None:
    """Those behind them are left out, where one cannot be kept."""
    odd = {"type": "string", "pattern": "(?=a)"}
    patterns = {f"p{index}": {"type": "string", "pattern": f"^{index}$"} for index in range(300)}
    first = loosely({"properties": {"odd": odd, **patterns}})["properties"]
    assert "pattern" not in first["odd"]
    assert first["p200"] == patterns["p200"]
    assert first["p299"] == {"type": "string"}
    assert loosely({"properties": patterns})["properties"] == patterns


def named(number: int) -> dict[str, Any]:
    return {"patternProperties": {f"^k{index:04}$": {} for index in range(number)}, "additionalProperties": False}


MANY = {
    "at one place": named(65),
    "at many": {"properties": {f"p{index}": {"patternProperties": {"^a": {}, "^b": {}}} for index in range(40)}},
    "at many by references": {
        "$defs": {"a": named(30)},
        "anyOf": [{"allOf": [{"$ref": "#/$defs/a"}, {"title": str(index)}]} for index in range(70)],
    },
}


@pytest.mark.parametrize("name", MANY)
def test_more_names_by_patterns_than_can_be_compared_are_refused_or_left_out(name: str) -> None:
    """Four hundred held a thread for twenty seconds."""
    with pytest.raises(InvalidRequest, match="more than 64 patternProperties"):
        strictly(MANY[name])
    with pytest.raises(InvalidRequest, match="more than 64 patternProperties"):
        Matcher.compile(Grammar("lark", f"start: %json {json.dumps(MANY[name])}"), BYTES)
    assert not {"patternProperties", "additionalProperties"} & {
        key for one in schemas(loosely(MANY[name])) for key in one
    }
    for few in (named(64), {"properties": {"patternProperties": {"const": "patternProperties"}}}):
        assert strictly(few).items() >= few.items()
        assert loosely(few).items() >= few.items()


@pytest.mark.parametrize("by_pattern", [{"^(?!_)": {"type": "integer"}, "^a": {"type": "integer"}}, [], {"(": {}}])
def test_a_name_that_a_pattern_left_out_was_for_is_not_forbidden(by_pattern: Any) -> None:
    closed = {"patternProperties": by_pattern, "additionalProperties": False, "required": ["b"]}
    schema = {"type": "object", "properties": {"a": closed}, "additionalProperties": False}
    left = loosely(schema)
    assert "additionalProperties" not in left["properties"]["a"]
    assert left["properties"]["a"]["required"] == ["b"]
    assert left["additionalProperties"] is False
    open_ = {"properties": [], "additionalProperties": False}
    assert "additionalProperties" not in loosely(open_)


GONE = {"$ref": "#/definitions/Gone"}
FINE = {f"p{index}": {"type": "integer"} for index in range(20)}


@pytest.mark.parametrize("odd", [GONE, {"type": "integer", "minimum": 2, "maximum": 1}, {"items": GONE}], ids=str)
def test_a_property_at_fault_leaves_the_others_what_they_ask(odd: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": odd, **FINE, "z": odd}, "required": ["a", "p1", "z"]}
    left = loosely(schema)
    assert {key: left[key] for key in schema} == schema | {"properties": {"a": {}, **FINE, "z": {}}}
    assert list(left["properties"]) == list(schema["properties"])
    assert fault(left) == ""


@pytest.mark.parametrize("keyword", ["anyOf", "allOf", "oneOf", "prefixItems", "items"])
def test_what_is_no_schema_in_a_list_of_them_is_any(keyword: str) -> None:
    left = loosely({keyword: ["a", {"type": "integer"}, 5]})
    assert left[keyword] == [{}, {"type": "integer"}, {}]


def test_whole_numbers_may_be_written_with_a_point() -> None:
    schema = {"type": "array", "minItems": 1.0, "maxItems": 2.0, "items": {"type": "string", "minLength": 5.0}}
    for kind in ("json_schema", "loose_schema"):
        for answer in answers(kind, schema):  # type: ignore[arg-type]
            jsonschema.validate(answer, schema)
    assert cleaned({"minLength": 0.5, "minimum": 1.0, "const": {"minLength": 1.0}}) == {
        "minLength": 0.5,
        "minimum": 1.0,
        "const": {"minLength": 1.0},
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": [{"type": "string"}], "prefixItems": [{"type": "integer"}]},
        {"type": "object", "properties": {"a": {"additionalProperties": None}}},
    ],
)
def test_what_would_be_passed_over_is_refused_strictly(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="write it so"):
        strictly(schema)
    assert answers("loose_schema", schema)
