"""Grammars made to cost: each is refused, or compiled and followed within bounds that the library counts."""

import json
import random
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hostile_grammars import BOUNDED, REFUSED
from support.odd_schemas import odd_schemas

from glm_cluster.errors import GlmError, InvalidRequest
from glm_cluster.records import Grammar, GrammarKind
from glm_cluster.text.grammar.matcher import Matcher
from glm_cluster.text.grammar.vocabulary import Vocabulary

BYTES = Vocabulary.of_bytes()


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return BYTES


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(name: str, vocabulary: Vocabulary) -> None:
    kind, source = REFUSED[name]
    for one in KINDS if kind == "json_schema" and name != "a long pattern" else (kind,):
        with pytest.raises(InvalidRequest):
            Matcher.compile(Grammar(one, source), vocabulary)  # type: ignore[arg-type]


KINDS: tuple[GrammarKind, ...] = ("json_schema", "loose_schema")


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(odd_schemas("\ud800", float("nan"), float("inf")), st.booleans())
def test_whatever_is_called_a_schema_is_followed_or_refused(schema: dict[str, object], is_ascii: bool) -> None:
    for kind in KINDS:
        _compile_or_refuse(Grammar(kind, json.dumps(schema, ensure_ascii=is_ascii)))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["regex", "lark", "choice", "json_schema", "json"]), st.text())
def test_whatever_is_called_a_grammar_is_followed_or_refused(kind: GrammarKind, source: str) -> None:
    _compile_or_refuse(Grammar(kind, source))
    _compile_or_refuse(Grammar("lark", f"start: {source}"))


def _compile_or_refuse(grammar: Grammar) -> None:
    with suppress(InvalidRequest):
        Matcher.compile(grammar, BYTES)


@pytest.mark.parametrize("kind", ["regex", "lark", "choice", "json_schema"])
def test_half_a_character_is_refused(kind: GrammarKind) -> None:
    for source in ("\ud800", '["\ud800"]', 'start: "\ud800"'):
        with pytest.raises(InvalidRequest):
            Matcher.compile(Grammar(kind, source), BYTES)


@pytest.mark.parametrize("name", BOUNDED)
def test_is_followed_or_refused(name: str, vocabulary: Vocabulary) -> None:
    """An error of ours at worst, at any token: never a crash, never for ever."""
    kind, source = BOUNDED[name]
    rng, output = random.Random(name), []
    with suppress(GlmError):
        matcher = Matcher.compile(Grammar(kind, source), vocabulary)  # type: ignore[arg-type]
        while len(output) < 50 and 256 not in output:
            mask = matcher.allowed()
            output.append(int(rng.choice(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")))))
            matcher.take(output[-1:])
