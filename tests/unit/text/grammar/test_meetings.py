"""Patterns that one string may have to match, wherever a schema says so."""

import json
from typing import Any

import pytest

from glm_cluster.errors import InvalidRequest
from glm_cluster.records import Grammar
from glm_cluster.text.grammar.matcher import Matcher
from glm_cluster.text.grammar.meetings import most_meeting
from glm_cluster.text.grammar.places import schemas
from glm_cluster.text.grammar.schema import loosely, strictly
from glm_cluster.text.grammar.vocabulary import Vocabulary

P = {"type": "string", "pattern": "a"}
CHAIN = {f"c{index}": {"pattern": f"{index}", "$ref": f"#/$defs/c{index + 1}"} for index in range(20)}


def inside(levels: int) -> dict[str, Any]:
    return {"pattern": "a", "anyOf": [inside(levels - 1), {}]} if levels else {}


@pytest.mark.parametrize(
    ("schema", "number"),
    [
        ({}, 0),
        (P, 1),
        ({"properties": {"a": P, "b": P, "c": {"items": P}}, "items": P}, 1),
        ({"anyOf": [P, P, {"allOf": [P, P]}]}, 2),
        ({"allOf": [P, P, {"properties": {"a": P}}], "pattern": "b"}, 4),
        ({"properties": {"a": P}, "patternProperties": {"^a": P, "^b": P}}, 2),
        ({"$ref": "#/$defs/c0", "$defs": {**CHAIN, "c20": P}}, 21),
        ({"$defs": {"a": {"pattern": "a", "items": {"$ref": "#/$defs/a"}}}, "items": {"$ref": "#/$defs/a"}}, 1),
        ({"$defs": {"a": P, "b": P, "c": P}, "$ref": "elsewhere#a"}, 3),
        ({"$defs": {"a": P, "b": {"allOf": [{"$ref": "#/$defs/a"}] * 9}}, "allOf": [{"$ref": "#/$defs/b"}] * 9}, 81),
        ({"properties": {"pattern": P, "allOf": P}, "enum": [{"pattern": "a"}]}, 1),
        (inside(12), 12),
        ({"pattern": 5, "allOf": 5, "anyOf": {}, "properties": [], "items": [P, 5], "$ref": 5}, 1),
    ],
    ids=range(13),
)
def test_so_many_meet(schema: dict[str, Any], number: int) -> None:
    assert most_meeting(schema) == number


def test_a_long_chain_is_not_followed_to_its_end() -> None:
    chain = {f"c{index}": {"items": {"$ref": f"#/$defs/c{index + 1}"}} for index in range(4000)}
    assert most_meeting({"$ref": "#/$defs/c0", "$defs": {**chain, "x": {"allOf": [P] * 7}}}) == 7


def test_a_chain_that_is_deep_besides_is_not_followed_either() -> None:
    """It was a RecursionError."""

    def nested(value: Any) -> Any:
        for _ in range(20):
            value = {"items": value}
        return value

    chain = {f"c{index}": nested({"$ref": f"#/$defs/c{index + 1}"}) for index in range(60)}
    assert most_meeting({"$ref": "#/$defs/c0", "$defs": {**chain, "c60": {"allOf": [P] * 7}}}) == 7


@pytest.mark.parametrize("schema", [{"allOf": [{"pattern": f"k{i}"} for i in range(40)]}, inside(20)], ids=range(2))
def test_too_many_are_refused_or_left_out(schema: dict[str, Any]) -> None:
    """Twenty held a thread for two seconds, and thirty for ever."""
    with pytest.raises(InvalidRequest, match="more than 8 patterns at once"):
        strictly(schema)
    with pytest.raises(InvalidRequest, match="more than 8 patterns at once"):
        Matcher.compile(Grammar("lark", f"start: %json {json.dumps(schema)}"), Vocabulary.of_bytes())
    assert not any("pattern" in one for one in schemas(loosely(schema)))
    apart = {"properties": {f"p{i}": {"anyOf": [{"type": "string", "pattern": f"k{i}"}, {}]} for i in range(40)}}
    assert strictly(apart).items() >= apart.items()
    assert loosely(apart).items() >= apart.items()
