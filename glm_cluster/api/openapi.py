"""The HTTP surface described: an OpenAPI document made of the types that requests are read with and replies written as.

Knows every route, and nothing that those types already say. Refuses to describe by hand what a type can.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import TypeAdapter

from glm_cluster import __version__, errors
from glm_cluster.api.encoding_replies import ClassifyBody, ClassifyTokensBody, EmbeddingsBody
from glm_cluster.api.inputs import ClassifyRequest, ClassifyTokensRequest, EmbeddingRequest
from glm_cluster.api.openai import ChatCompletionRequest, CompletionRequest
from glm_cluster.api.replies import ErrorBody, Reply
from glm_cluster.api.schema import Body
from glm_cluster.api.server import Load, ServerInfo
from glm_cluster.api.server_replies import (
    DetokenizeBody,
    ModelBody,
    ModelsBody,
    StatusBody,
    TokenizeBody,
    VersionBody,
)
from glm_cluster.api.tokenization import DetokenizeRequest, TokenizeRequest
from glm_cluster.records import ModelInfo, Task

JsonSchema: TypeAlias = dict[str, Any]

_EVENTS = (
    "The JSON of a chunk. The last event's is [DONE] instead. What goes wrong after the first event is an event with "
    "an error object, and the last."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of a path. `events` is what a chunk of its stream is, where it has one."""

    paths: Sequence[str]
    summary: str
    reply: Any
    request: type[Body] | None = None
    events: Any = None
    task: Task | None = None  # of the models that it takes; None: any
    errors: Mapping[int, Any] | None = None  # None: all that an engine can cause

    @property
    def method(self) -> str:
        """In lower case."""
        return "get" if self.request is None else "post"

    @property
    def statuses(self) -> Mapping[int, Any]:
        """What comes instead of the reply: status and body."""
        return dict.fromkeys(error_statuses(), ErrorBody) if self.errors is None else self.errors


OPEN: Mapping[int, Any] = {431: ErrorBody}
KEYED: Mapping[int, Any] = {401: ErrorBody, **OPEN}

OPERATIONS = (
    Operation(
        paths=["/v1/chat/completions"],
        summary="Answer a conversation, in events if stream is true",
        request=ChatCompletionRequest,
        reply=Reply,
        events=Reply,
        task="generate",
    ),
    Operation(
        paths=["/v1/completions"],
        summary="Continue a prompt, in events if stream is true",
        request=CompletionRequest,
        reply=Reply,
        events=Reply,
        task="generate",
    ),
    Operation(
        paths=["/v1/embeddings"],
        summary="Make vectors of inputs",
        request=EmbeddingRequest,
        reply=EmbeddingsBody,
        task="embed",
    ),
    Operation(
        paths=["/v1/classify"], summary="Label inputs", request=ClassifyRequest, reply=ClassifyBody, task="classify"
    ),
    Operation(
        paths=["/v1/classify_tokens"],
        summary="Label the tokens of inputs",
        request=ClassifyTokensRequest,
        reply=ClassifyTokensBody,
        task="classify-tokens",
    ),
    Operation(
        paths=["/tokenize", "/v1/tokenize"],
        summary="Turn a text or a conversation into token ids",
        request=TokenizeRequest,
        reply=TokenizeBody,
    ),
    Operation(
        paths=["/detokenize", "/v1/detokenize"],
        summary="Turn token ids into text, control tokens written out",
        request=DetokenizeRequest,
        reply=DetokenizeBody,
    ),
    Operation(paths=["/v1/models"], summary="List the served models", reply=ModelsBody, errors=KEYED),
    Operation(
        paths=["/v1/models/{model}"],
        summary="Describe a served model (slashes in its id may stand as they are)",
        reply=ModelBody,
        errors={**KEYED, 404: ErrorBody},
    ),
    Operation(paths=["/v1/server_info"], summary="Versions, and how models are run", reply=ServerInfo, errors=KEYED),
    Operation(paths=["/load"], summary="Requests running and waiting, and KV use", reply=Load, errors=KEYED),
    Operation(
        paths=["/health"],
        summary="Whether every model has an engine",
        reply=StatusBody,
        errors={**OPEN, 503: StatusBody},
    ),
    Operation(
        paths=["/ready"],
        summary="Whether every model has an engine all of whose ranks made a step",
        reply=StatusBody,
        errors={**OPEN, 503: StatusBody},
    ),
    Operation(paths=["/version"], summary="The server's version", reply=VersionBody, errors=OPEN),
)


def document(infos: Sequence[ModelInfo]) -> JsonSchema:
    """The OpenAPI document of a server of these models."""
    schemas, definitions = _schemas()
    _name_models(definitions, schemas, infos)
    paths: JsonSchema = {}
    for operation in OPERATIONS:
        described = _described(operation, schemas)
        for path in operation.paths:
            name = f"{operation.method}{path.translate(_PLAIN)}"
            paths[path] = {operation.method: {"operationId": name, **described}}
    return {
        "openapi": "3.2.0",
        "info": {"title": "glm_cluster", "version": __version__, "description": "GLM models in OpenAI's words."},
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}},
        },
    }


_PLAIN = str.maketrans({"/": "_", "{": "", "}": ""})


def error_statuses() -> dict[int, str]:
    """The statuses of all errors that a request can meet, and what each means: the errors say it themselves."""
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.GlmError)]
    met = [kind for kind in kinds if kind is not errors.GlmError and not issubclass(kind, errors.ConfigError)]
    words: dict[int, str] = {}
    for kind in sorted(met, key=lambda kind: (kind.http_status, len(kind.__mro__))):
        words[kind.http_status] = " ".join([words.get(kind.http_status, ""), inspect.getdoc(kind) or ""]).strip()
    return words


def _schemas() -> tuple[dict[Any, JsonSchema], JsonSchema]:
    """A reference to the schema of each type, and the definitions they refer to."""
    requests = {op.request for op in OPERATIONS if op.request is not None}
    replies = {reply for op in OPERATIONS for reply in (op.reply, op.events, ErrorBody) if reply is not None}
    inputs: list[Any] = [(type, "validation", TypeAdapter(type)) for type in _in_order(requests)]
    inputs += [(type, "serialization", TypeAdapter(type)) for type in _in_order(replies)]
    made, shared = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    definitions = dict(shared["$defs"])
    return {type: _shared(type, schema, definitions) for (type, _), schema in made.items()}, definitions


def _in_order(types: set[Any]) -> list[Any]:
    return sorted(types, key=lambda type: str(type.__name__))


def _shared(type: Any, schema: JsonSchema, definitions: JsonSchema) -> JsonSchema:
    """A reference in the place of a schema that is spelt out."""
    if "$ref" in schema:
        return schema
    definitions[type.__name__] = schema
    return {"$ref": f"#/components/schemas/{type.__name__}"}


def _name_models(definitions: JsonSchema, schemas: Mapping[Any, JsonSchema], infos: Sequence[ModelInfo]) -> None:
    """Say of each body which models it may name, and that null stands for what may be left out."""
    for operation in OPERATIONS:
        if operation.request is None:
            continue
        schema = definitions[schemas[operation.request]["$ref"].rpartition("/")[2]]
        required = schema.get("required", [])
        schema["properties"] = {
            name: field if name in required else _or_null(field) for name, field in schema["properties"].items()
        }
        names = [info.name for info in infos if operation.task in (None, info.task)]
        if names:
            schema["properties"]["model"] = {"type": "string", "enum": names, "description": "A served model."}


def _or_null(field: JsonSchema) -> JsonSchema:
    kinds = field.get("anyOf", [])
    if {"type": "null"} in kinds or field.get("type") == "null":
        return field
    outer: JsonSchema = {key: field[key] for key in ("default", "title", "description") if key in field}
    inner = {key: value for key, value in field.items() if key not in outer}
    return {"anyOf": [inner, {"type": "null"}], **outer}


def _described(operation: Operation, schemas: Mapping[Any, JsonSchema]) -> JsonSchema:
    described: JsonSchema = {"summary": operation.summary, "responses": dict(_responses(operation, schemas))}
    if operation.request is not None:
        described["requestBody"] = {"required": True, "content": _json(schemas[operation.request])}
    if parameters := [_parameter(path) for path in operation.paths if "{" in path]:
        described["parameters"] = parameters
    if 401 in operation.statuses:
        described["security"] = [{"key": []}, {}]  # {}: a server without keys lets anyone in
    return described


def _responses(operation: Operation, schemas: Mapping[Any, JsonSchema]) -> Iterator[tuple[str, JsonSchema]]:
    content = _json(schemas[operation.reply])
    if operation.events is not None:
        content = {**content, "text/event-stream": {"itemSchema": _event(schemas[operation.events])}}
    yield "200", {"description": "The answer.", "content": content}
    words = error_statuses()
    for status, body in operation.statuses.items():
        response = {"description": words[status], "content": _json(schemas[body])}
        if status == 429:
            response["headers"] = {"retry-after": {"schema": {"type": "string"}, "description": "Seconds."}}
        yield str(status), response


def _event(chunk: JsonSchema) -> JsonSchema:
    """A server-sent event, as OpenAPI 3.2 has it."""
    coded = {"contentMediaType": "application/json", "contentSchema": chunk}
    data = {"type": "string", "anyOf": [{"const": "[DONE]"}, coded], "description": _EVENTS}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def _parameter(path: str) -> JsonSchema:
    name = path.partition("{")[2].partition("}")[0]
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _json(schema: JsonSchema) -> JsonSchema:
    return {"application/json": {"schema": schema}}
