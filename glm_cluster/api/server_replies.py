"""What the HTTP wire says of models, their tokens and the server's health. Knows JSON, no sockets.

What it says of the server beside these are the records of `server`, field by field.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from glm_cluster.api.tokenization import Tokenized
from glm_cluster.records import ModelInfo, Task

_PIECE_ITEMS = 8192  # of a list, made at one go: a millisecond


class StatusBody(TypedDict):
    """Whether the server is well."""

    status: Literal["ok", "not ready"]


class VersionBody(TypedDict):
    """Which version this is."""

    version: str


class ModelBody(TypedDict):
    """A served model; one that classifies has labels."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    task: Task
    labels: NotRequired[Sequence[str]]


class ModelsBody(TypedDict):
    """All served models."""

    object: Literal["list"]
    data: Sequence[ModelBody]


class TokenizeBody(TypedDict):
    """The ids of a text."""

    count: int
    max_model_len: int
    tokens: Sequence[int]
    token_strs: Sequence[str] | None


class DetokenizeBody(TypedDict):
    """The text of ids."""

    prompt: str


def models_body(infos: Sequence[ModelInfo]) -> ModelsBody:
    """The reply of /v1/models."""
    return {"object": "list", "data": [model_body(info) for info in infos]}


def model_body(info: ModelInfo) -> ModelBody:
    """The reply of /v1/models/{id}."""
    body: ModelBody = {
        "id": info.name,
        "object": "model",
        "created": info.created,
        "owned_by": "glm_cluster",
        "max_model_len": info.max_model_len,
        "task": info.task,
    }
    if info.labels:
        body["labels"] = info.labels
    return body


def tokenize_pieces(tokenized: Tokenized) -> Iterator[bytes]:
    """The reply of /tokenize, piece by piece: it may be too long to be made at one go."""
    yield b'{"count":%d,"max_model_len":%d,"tokens":' % (len(tokenized.ids), tokenized.max_model_len)
    yield from _list_pieces(tokenized.ids)
    yield b',"token_strs":'
    if tokenized.strings is None:
        yield b"null"
    else:
        yield from _list_pieces(tokenized.strings)
    yield b"}"


def _list_pieces(items: Sequence[int] | Sequence[str]) -> Iterator[bytes]:
    yield b"["
    for start in range(0, len(items), _PIECE_ITEMS):
        inner = json.dumps(items[start : start + _PIECE_ITEMS], separators=(",", ":"))[1:-1]
        yield (b"," if start else b"") + inner.encode()
    yield b"]"
