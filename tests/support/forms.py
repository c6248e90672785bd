"""What the demo model is asked to write: real schemas, each with the bounds under which any answer ends."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import jsonschema
from support.bounds import bounded
from support.schema_store import store_schemas
from support.schemas import real_schemas

from glm_cluster.errors import InvalidRequest
from glm_cluster.records import Grammar
from glm_cluster.text.grammar.limits import SOURCE_BYTES
from glm_cluster.text.grammar.matcher import Matcher
from glm_cluster.text.grammar.vocabulary import Vocabulary

PARTS = 12
"""OpenAI's types and SchemaStore's files, in parts of a size and a kind."""


@dataclass(frozen=True)
class Form:
    """A schema as it is in the world, and what is asked for."""

    name: str
    schema: dict[str, Any]
    bounded: dict[str, Any]

    @property
    def question(self) -> list[dict[str, str]]:
        """What to write, for the model."""
        noun = self.name.removesuffix(".json").rpartition("/")[2].rpartition(".")[2]
        return [{"role": "user", "content": f"Write a short JSON object of the type {noun[:60]}."}]

    @property
    def frequency_penalty(self) -> float:
        """What a client asks for where bounds bring no end: of a schema that recurs, to a model that repeats itself."""
        return 0.5 if recurs(self.schema) else 0.0

    def check(self, text: str) -> None:
        """Raise unless `text` keeps the schema, its bounds and what it is without them."""
        answer = json.loads(text)
        for schema in (self.bounded, self.schema):
            judge_of(schema)(schema).validate(answer)


def judge_of(schema: dict[str, Any]) -> Any:
    """The validator of the schema's dialect, of the latest if it names none that is known."""
    return jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)


def recurs(schema: dict[str, Any]) -> bool:
    """Whether a reference leads back to where it stands, so that an answer may nest ever deeper."""
    inside = {pointer: _pointers(_target(schema, pointer)) for pointer in _pointers(schema)}
    return any(pointer in _reached(pointer, inside) for pointer in inside)


def _reached(start: str, inside: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = inside.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def _pointers(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_pointers, value))
    if not isinstance(value, dict):
        return set()
    own = {ref} if isinstance(ref := value.get("$ref"), str) and ref.startswith("#") else set()
    return own.union(*map(_pointers, value.values()))


def _target(schema: dict[str, Any], pointer: str) -> Any:
    """Where a pointer points; nothing where it names an anchor."""
    value: Any = schema
    for step in filter(None, pointer.removeprefix("#").split("/")):
        value = value.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(value, dict) else None
    return value


def forms(part: int) -> tuple[Form, ...]:
    """Those of a part that can be followed, and judged."""
    return _all_forms()[part::PARTS]


@cache
def _all_forms() -> tuple[Form, ...]:
    return tuple(_found())


def _found() -> Iterator[Form]:
    vocabulary = Vocabulary.of_bytes()
    for name, schema in {**real_schemas(), **store_schemas()}.items():
        form = Form(name, schema, bounded(schema))
        if _is_judged(schema) and all(_is_followed(one, vocabulary) for one in (schema, form.bounded)):
            yield form


def _is_followed(schema: dict[str, Any], vocabulary: Vocabulary) -> bool:
    if len(source := json.dumps(schema)) > SOURCE_BYTES:
        return False
    try:
        Matcher.compile(Grammar("json_schema", source), vocabulary)
    except InvalidRequest:
        return False
    return True


def _is_judged(schema: dict[str, Any]) -> bool:
    """Some patterns are no regexes of Python's."""
    try:
        judge_of(schema).check_schema(schema)
    except jsonschema.SchemaError:
        return False
    return True
