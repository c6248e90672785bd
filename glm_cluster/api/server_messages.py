"""Protobuf messages to what `tokenization` validates, and what the server says of itself to protobuf messages.

Knows no calls.
"""

from collections.abc import Iterator
from dataclasses import asdict

from glm_cluster.api.messages import TASKS, conversation_fields, fields_given, refuse_many
from glm_cluster.api.proto import glm_pb2
from glm_cluster.api.schema import ModelName
from glm_cluster.api.server import Load, ServedInfo, ServerInfo
from glm_cluster.api.tokenization import DetokenizeRequest, Tokenized, TokenizeRequest

_SLICE = 8192  # ids put into a message at one go: a millisecond


def model_name(message: glm_pb2.GetModelRequest) -> str:
    """The name of the model asked for."""
    return ModelName.parse(fields_given(message)).model


def tokenize_request(message: glm_pb2.TokenizeRequest) -> TokenizeRequest:
    """Validate a text to tokenise."""
    refuse_many(message)
    return TokenizeRequest.parse(fields_given(message) | conversation_fields(message))


def detokenize_request(message: glm_pb2.DetokenizeRequest) -> DetokenizeRequest:
    """Validate ids to make text of."""
    return DetokenizeRequest.parse({**fields_given(message), "tokens": list(message.tokens)})


async def tokenize_response(tokenized: Tokenized) -> glm_pb2.TokenizeResponse:
    """The ids of a text."""
    response = glm_pb2.TokenizeResponse(count=len(tokenized.ids), max_model_len=tokenized.max_model_len)
    await tokenized.window.drain(_filling(response, tokenized), int)
    return response


def _filling(response: glm_pb2.TokenizeResponse, tokenized: Tokenized) -> Iterator[int]:
    """Put the ids into the response a slice at a time; about how many bytes each was."""
    strings = tokenized.strings or ()
    for start in range(0, len(tokenized.ids), _SLICE):
        response.tokens.extend(tokenized.ids[start : start + _SLICE])
        response.token_strs.extend(strings[start : start + _SLICE])
        yield 8 * _SLICE


def server_info_message(info: ServerInfo) -> glm_pb2.ServerInfo:
    """What the server is made of and what it serves."""
    return glm_pb2.ServerInfo(
        versions=glm_pb2.Versions(**asdict(info.versions)), models=[_served(model) for model in info.models]
    )


def _served(model: ServedInfo) -> glm_pb2.ServedModel:
    sampling = model.sampling_defaults
    return glm_pb2.ServedModel(
        id=model.id,
        task=TASKS[model.task],
        max_model_len=model.max_model_len,
        labels=model.labels,
        engine=glm_pb2.Engine(**asdict(model.engine)),
        sampling_defaults=None if sampling is None else glm_pb2.SamplingDefaults(**asdict(sampling)),
    )


def load_message(load: Load) -> glm_pb2.Load:
    """How busy the server is."""
    return glm_pb2.Load(models=[glm_pb2.ModelLoad(**asdict(model)) for model in load.models])
