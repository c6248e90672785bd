"""What a client may say about the form of an answer: OpenAI's `response_format` and vLLM's `structured_outputs`.

Knows shapes, and which grammar each means. Refuses to know what a grammar means: a desk looks it over.
"""

import json
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from glm_cluster.api.moot import STRUCTURED, Moot
from glm_cluster.api.schema import Body, FirstFault, Schema
from glm_cluster.records import Grammar
from glm_cluster.text.grammar.limits import CHOICES, SOURCE_BYTES


def _source(schema: object) -> str:
    """The schema's text: the order of its properties is that of the answer's."""
    if not isinstance(schema, dict | str):
        raise ValueError("Input should be a JSON schema: an object, or the text of one")
    source = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    if len(source) > SOURCE_BYTES:
        raise ValueError(f"Input should have at most {SOURCE_BYTES} bytes")
    return source


_EITHER = {"anyOf": [{"type": "object"}, {"type": "string"}]}
JsonSchema: TypeAlias = Annotated[str, BeforeValidator(_source), WithJsonSchema(_EITHER)]
"""The text of a JSON schema, which may be given as an object too."""


class JsonSchemaFormat(Schema):
    """OpenAI's wrapping of a schema. An answer is held to all of it if strict, else to what can be kept of it."""

    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    definition: JsonSchema = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Schema):
    """OpenAI's way to ask for a form."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_goes_with_its_type(self) -> Self:
        if (self.json_schema is not None) is not (self.type == "json_schema"):
            raise ValueError("json_schema belongs to type json_schema, and is needed there")
        return self

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must match; None where it may be any text."""
        if self.json_schema is not None:
            return Grammar("json_schema" if self.json_schema.strict else "loose_schema", self.json_schema.definition)
        return Grammar("json", "") if self.type == "json_object" else None


class StructuredOutputs(Schema):
    """vLLM's way: exactly one of these."""

    moot: ClassVar[Moot] = STRUCTURED
    json_schema: JsonSchema | None = Field(default=None, alias="json")
    json_object: Literal[True] | None = None
    regex: str | None = None
    choice: Annotated[list[str], FirstFault(), Field(min_length=1, max_length=CHOICES)] | None = None
    grammar: str | None = None  # in llguidance's variant of Lark

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.model_fields_set) != 1 or None in (getattr(self, name) for name in self.model_fields_set):
            raise ValueError("give exactly one of json, json_object, regex, choice and grammar")
        return self

    @property
    def as_grammar(self) -> Grammar:
        """What the answer must match."""
        if self.json_schema is not None:
            return Grammar("json_schema", self.json_schema)
        if self.regex is not None:
            return Grammar("regex", self.regex)
        if self.choice is not None:
            return Grammar("choice", json.dumps(self.choice, ensure_ascii=False))
        return Grammar("json", "") if self.grammar is None else Grammar("lark", self.grammar)


class StructuredBody(Body):
    """A request whose answer may have to have a form."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def form_field(self) -> str:
        """The field that asks for a form."""
        return "response_format" if self.structured_outputs is None else "structured_outputs"

    @property
    def grammar(self) -> Grammar | None:
        """What an answer must match as a whole, if anything."""
        if self.structured_outputs is not None:
            return self.structured_outputs.as_grammar
        return None if self.response_format is None else self.response_format.grammar

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.response_format is not None and self.response_format.grammar and self.structured_outputs is not None:
            raise ValueError("response_format and structured_outputs exclude each other; give one of them")
        return self

    def check_form_alone(self, **others: object) -> None:
        """Raise ValueError if one of `others`, by name, is given: with a form, they could leave no token to choose."""
        if self.grammar is not None and (given := [name for name, value in others.items() if value]):
            raise ValueError(f"{self.form_field}: cannot be kept together with {', '.join(given)}; leave one out")
