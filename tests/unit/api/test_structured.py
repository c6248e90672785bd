"""Which forms of an answer may be asked for, what each means, and what is said of a wrong one."""

import asyncio
import json
import threading
from typing import Any

import pytest

from glm_cluster.api import desk as desks
from glm_cluster.api.desk import GrammarDesk
from glm_cluster.api.structured import StructuredBody
from glm_cluster.errors import InvalidRequest, Overloaded
from glm_cluster.records import Grammar
from glm_cluster.text.grammar.limits import CHOICES, SOURCE_BYTES
from glm_cluster.text.grammar.vocabulary import Vocabulary

SCHEMA = {"type": "object", "properties": {"b": {"const": "é"}, "a": {}}}
TEXT = '{"type":"object","properties":{"b":{"const":"é"},"a":{}}}'


def parsed(**fields: Any) -> StructuredBody:
    return StructuredBody.parse({"model": "m", **fields})


def json_schema(**changes: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, **changes}}


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({}, None),
        ({"response_format": None, "structured_outputs": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json", "")),
        ({"response_format": json_schema()}, Grammar("loose_schema", TEXT)),
        ({"response_format": json_schema(strict=None)}, Grammar("loose_schema", TEXT)),
        ({"response_format": json_schema(strict=True, description="d")}, Grammar("json_schema", TEXT)),
        ({"response_format": json_schema(strict=False)}, Grammar("loose_schema", TEXT)),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar("json_schema", TEXT)),
        ({"structured_outputs": {"json": TEXT}}, Grammar("json_schema", TEXT)),
        ({"structured_outputs": {"json_object": True}}, Grammar("json", "")),
        ({"structured_outputs": {"regex": "a+"}}, Grammar("regex", "a+")),
        ({"structured_outputs": {"choice": ["é", "b"]}}, Grammar("choice", '["é", "b"]')),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, Grammar("lark", 'start: "a"')),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}}, Grammar("regex", "a")),
    ],
)
def test_a_form_means_a_grammar(fields: dict[str, Any], grammar: Grammar | None) -> None:
    assert parsed(**fields).grammar == grammar


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_object", "json_schema": json_schema()["json_schema"]}}, "response_format"),
        ({"response_format": json_schema(name="a b")}, "response_format.json_schema.name"),
        ({"response_format": json_schema(name="")}, "response_format.json_schema.name"),
        ({"response_format": json_schema(other=1)}, "response_format.json_schema.other"),
        ({"response_format": json_schema(strict="yes")}, "response_format.json_schema.strict"),
        ({"response_format": json_schema(schema={"enum": ["a" * SOURCE_BYTES]})}, "response_format.json_schema.schema"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": None}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a"] * (CHOICES + 1)}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, None),
    ],
)
def test_a_wrong_form_is_refused_by_name(fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(**fields)
    assert caught.value.param == param


def test_a_form_and_what_may_leave_nothing_exclude_each_other() -> None:
    body = parsed(structured_outputs={"regex": "a"})
    body.check_form_alone(ignore_eos=False, min_tokens=0)
    parsed().check_form_alone(ignore_eos=True)
    with pytest.raises(ValueError, match=r"structured_outputs.*ignore_eos, min_tokens"):
        body.check_form_alone(ignore_eos=True, min_tokens=3)


@pytest.fixture
def desk():
    one = GrammarDesk(["<|user|>"])
    yield one
    one.close()


async def test_a_good_grammar_passes(desk: GrammarDesk) -> None:
    await desk.check(Grammar("json_schema", TEXT), "response_format")
    await desk.check(Grammar("lark", "start: <|user|>"), "structured_outputs")


async def test_a_bad_grammar_is_refused_with_its_field(desk: GrammarDesk) -> None:
    for grammar in (Grammar("regex", "("), Grammar("json_schema", json.dumps({"not": {}}))):
        with pytest.raises(InvalidRequest, match=r"^structured_outputs: ") as caught:
            await desk.check(grammar, "structured_outputs")
        assert caught.value.param == "structured_outputs"


async def test_who_waits_too_long_may_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on meanwhile, and the grammar is ready for the next time."""
    may_open, small = threading.Event(), Vocabulary.of_bytes()

    def slow(control_tokens: object) -> Vocabulary:
        may_open.wait(60)
        return small

    monkeypatch.setattr(desks.Vocabulary, "of_bytes", slow)
    desk = GrammarDesk([], patience_s=0.05)
    with pytest.raises(Overloaded):
        await desk.check(Grammar("regex", "a"), "structured_outputs")
    may_open.set()
    while True:
        try:
            await desk.check(Grammar("regex", "a"), "structured_outputs")
            break
        except Overloaded:
            await asyncio.sleep(0)
    desk.close()
