"""What comes out under a real schema keeps it: random outputs of a vocabulary of bytes, for hundreds of schemas."""

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest
from support.schemas import PACKAGES, real_schemas
from support.tiny_text import tokenizer_json

from glm_cluster.records import Grammar
from glm_cluster.text.grammar.limits import SOURCE_BYTES
from glm_cluster.text.grammar.matcher import Matcher
from glm_cluster.text.grammar.vocabulary import Vocabulary
from glm_cluster.text.tokenizer import Tokenizer

STOP = 260
CLOSERS = (ord('"'), ord("]"), ord("}"), STOP)
TOKENIZER = Tokenizer(tokenizer_json())
VOCABULARY = Vocabulary.of(TOKENIZER, stop_ids=(STOP,), vocab_size=300)
LONGEST = 20000


def random_output(schema: dict[str, Any], seed: str) -> list[int]:
    """Of one who likes to close what is open: strings and lists have no bound."""
    rng, output = random.Random(seed), []
    matcher = Matcher.compile(Grammar("json_schema", json.dumps(schema)), VOCABULARY)
    while True:
        assert len(output) < LONGEST, "it does not end"
        ids = np.flatnonzero(np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little"))
        closing = [id for id in CLOSERS if id in ids]
        token = int(rng.choice(closing if closing and rng.random() < 0.8 else ids))
        if token == STOP:
            return output
        output.append(token)
        matcher.take([token])


def test_there_are_hundreds() -> None:
    assert len(real_schemas()) >= 300


@pytest.mark.parametrize("package", PACKAGES)
def test_real_schemas_are_kept(package: str) -> None:
    schemas = {name: schema for name, schema in real_schemas().items() if name.startswith(f"{package}.")}
    assert schemas
    for name, schema in schemas.items():
        if len(json.dumps(schema)) <= SOURCE_BYTES:
            jsonschema.validate(json.loads(TOKENIZER.decode(random_output(schema, name))), schema)
