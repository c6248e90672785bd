"""Every schema of SchemaStore as it is: it is refused in a sentence at once, or what comes out under it keeps it."""

import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import jsonschema
import pytest
from support.forms import PARTS, forms, judge_of
from support.random_author import random_output
from support.schema_store import store_schemas

from glm_cluster.api.desk import GrammarDesk
from glm_cluster.errors import InvalidRequest
from glm_cluster.records import Grammar
from glm_cluster.text.grammar.matcher import Matcher
from glm_cluster.text.grammar.vocabulary import Vocabulary

STOP = 256
MOST_BYTES = 4_000
REASONS = {
    "uniqueItems": '"uniqueItems"',
    "oneOf of overlapping branches": "oneOf constraints",
    "if": '"if"',
    "not": '"not"',
    "another keyword": "Unimplemented keys",
    "length": "more than 65536 bytes",
    "look-around, or another regex": "regex parse error",
    "$ref outside the schema": "not present in a registry",
    "$ref beside other keywords": "circular references with sibling keys",
    "min/maxProperties": "min/maxProperties",
}


@pytest.fixture
async def desk() -> AsyncIterator[GrammarDesk]:
    desk = GrammarDesk(())
    yield desk
    desk.close()


def reason(message: str) -> str:
    return next((name for name, words in REASONS.items() if words in message), "other")


async def test_each_is_refused_or_kept(desk: GrammarDesk, record_figures: Callable[[dict[str, Any]], None]) -> None:
    outcome: Counter[str] = Counter()
    vocabulary = Vocabulary.of_bytes()
    for url, schema in store_schemas().items():
        grammar = Grammar("json_schema", json.dumps(schema))
        if (sentence := await refusal(desk, grammar)) is None:
            output = random_output(Matcher.compile(grammar, vocabulary), (STOP,), seed=url, most=MOST_BYTES)
            outcome["unended" if output is None else "kept"] += 1
            if output is not None:
                check(schema, bytes(output).decode())
        else:
            assert re.match(r"response_format: .{10}", sentence)
            outcome[f"refused: {reason(sentence)}"] += 1
    assert outcome["kept"] >= 205
    assert outcome["unended"] <= 5
    record_figures({f"store, {name}": count for name, count in outcome.items()})


async def refusal(desk: GrammarDesk, grammar: Grammar) -> str | None:
    try:
        await desk.check(grammar, "response_format")
    except InvalidRequest as error:
        return error.message
    return None


def check(schema: dict[str, Any], text: str) -> None:
    answer = json.loads(text)
    with suppress(jsonschema.SchemaError, re.error):  # a pattern that is no regex of Python's: there is nobody to judge
        jsonschema.validate(answer, schema, cls=judge_of(schema))


def test_enough_of_them_can_be_bounded() -> None:
    """What the demo model is asked for: hundreds of schemas, and nearly all of the store's that can be followed."""
    names = [form.name for part in range(PARTS) for form in forms(part)]
    assert len(names) == len(set(names)) >= 530
    assert sum("://" in name for name in names) >= 170
    assert sum(len(forms(part)) for part in range(0, PARTS, 2)) >= 200
