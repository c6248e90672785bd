"""What comes out under a real schema keeps it: random outputs of a vocabulary of bytes, for hundreds of schemas."""

import json

import jsonschema
import pytest
from support.random_author import random_output
from support.schemas import PACKAGES, real_schemas
from support.tiny_text import tokenizer_json

from glm_cluster.records import Grammar
from glm_cluster.text.grammar.limits import SOURCE_BYTES
from glm_cluster.text.grammar.matcher import Matcher
from glm_cluster.text.grammar.vocabulary import Vocabulary
from glm_cluster.text.tokenizer import Tokenizer

STOP = 260
TOKENIZER = Tokenizer(tokenizer_json())
VOCABULARY = Vocabulary.of(TOKENIZER, stop_ids=(STOP,), vocab_size=300)
LONGEST = 20000


def test_there_are_hundreds() -> None:
    assert len(real_schemas()) >= 300


@pytest.mark.parametrize("package", PACKAGES)
def test_real_schemas_are_kept(package: str) -> None:
    schemas = {name: schema for name, schema in real_schemas().items() if name.startswith(f"{package}.")}
    assert schemas
    for name, schema in schemas.items():
        if len(json.dumps(schema)) <= SOURCE_BYTES:
            matcher = Matcher.compile(Grammar("json_schema", json.dumps(schema)), VOCABULARY)
            output = random_output(matcher, (STOP,), seed=name, most=LONGEST)
            assert output is not None
            jsonschema.validate(json.loads(TOKENIZER.decode(output)), schema)
