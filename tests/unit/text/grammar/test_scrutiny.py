"""The library is asked as long as a request may ask it, and not twice."""

from typing import Any

import llguidance
import pytest

from glm_cluster.text.grammar import scrutiny
from glm_cluster.text.grammar.schema import loosely
from glm_cluster.text.grammar.scrutiny import SPENT, Scrutiny, fault


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the library is asked about, which forgets all that it was asked before."""
    seen: list[str] = []
    validates = llguidance.LLMatcher.validate_grammar

    def validate(grammar: str, **options: Any) -> str:
        seen.append(grammar)
        return validates(grammar, **options)

    monkeypatch.setattr(llguidance.LLMatcher, "validate_grammar", validate)
    monkeypatch.setattr(scrutiny, "_answers", scrutiny._Answers())
    return seen


class Clock:
    """Goes on by one with each look at it."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_once_time_is_up_all_is_at_fault(asked: list[str]) -> None:
    looks = Scrutiny(3.0, Clock())
    said = [looks.fault({"maximum": number}) for number in range(5)]
    assert said == ["", "", SPENT, SPENT, SPENT]
    assert looks.is_spent
    assert len(asked) == 2


def test_a_schema_is_looked_at_no_longer_than_that(asked: list[str]) -> None:
    properties = {f"p{index}": {"pattern": f"(?={index})", "$ref": "#/nope"} for index in range(100)}
    left = loosely({"properties": properties}, Scrutiny(10.0, Clock()))
    assert len(asked) < 10
    assert "pattern" not in left["properties"]["p50"]


def test_a_part_that_is_not_looked_at_in_time_is_any() -> None:
    """Of what is at fault; what is not is told at once."""
    schema = {"properties": {"a": {"$ref": "#/nope"}, **{f"p{index}": {"maximum": index} for index in range(64)}}}
    left = loosely(schema, Scrutiny(9.0, Clock()))["properties"]
    assert left["a"] == left["p0"] == {}
    assert loosely(schema)["properties"]["p0"] == {"maximum": 0}


def test_an_answer_is_kept_and_the_last_of_many(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrutiny, "_KEPT", 2)
    for number in (1, 2, 1, 3, 1, 2):
        assert fault({"multipleOf": number}) == ""
    assert len(asked) == 4
    assert all(len(digest) == 32 for digest in scrutiny._answers._by_digest)
