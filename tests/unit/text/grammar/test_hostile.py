"""Grammars made to cost: each is refused, or compiled and followed within bounds that the library counts."""

import random
from contextlib import suppress

import numpy as np
import pytest
from support.hostile_grammars import BOUNDED, REFUSED

from glm_cluster.errors import GlmError, InvalidRequest
from glm_cluster.records import Grammar
from glm_cluster.text.grammar.matcher import Matcher
from glm_cluster.text.grammar.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.of_bytes()


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(name: str, vocabulary: Vocabulary) -> None:
    kind, source = REFUSED[name]
    with pytest.raises(InvalidRequest):
        Matcher.compile(Grammar(kind, source), vocabulary)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BOUNDED)
def test_is_followed_or_refused(name: str, vocabulary: Vocabulary) -> None:
    """An error of ours at worst, at any token: never a crash, never for ever."""
    kind, source = BOUNDED[name]
    rng, output = random.Random(name), []
    with suppress(GlmError):
        matcher = Matcher.compile(Grammar(kind, source), vocabulary)  # type: ignore[arg-type]
        while len(output) < 50 and 256 not in output:
            mask = matcher.allowed(output)
            output.append(int(rng.choice(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")))))
