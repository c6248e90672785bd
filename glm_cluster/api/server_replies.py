"""What the HTTP wire says of models, their tokens and the server's health. Knows JSON, no sockets.

What it says of the server beside these are the records of `server`, field by field.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from glm_cluster.api.json_pieces import json_pieces
from glm_cluster.api.tokenization import Tokenized
from glm_cluster.records import ModelInfo, Task


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
    body: TokenizeBody = {
        "count": len(tokenized.ids),
        "max_model_len": tokenized.max_model_len,
        "tokens": tokenized.ids,
        "token_strs": tokenized.strings,
    }
    return json_pieces(body)
