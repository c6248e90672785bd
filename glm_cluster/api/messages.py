"""Protobuf messages to what `openai` validates, and answers to protobuf messages. Knows no calls.

Both wires share one validator: a message becomes the mapping that the same request would be in JSON.
"""

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from glm_cluster.api.openai import MAX_ITEMS, ChatCompletionRequest, CompletionRequest
from glm_cluster.api.proto import glm_pb2
from glm_cluster.api.replies import Head
from glm_cluster.api.schema import too_many
from glm_cluster.api.service import Answer, Delta, Usage
from glm_cluster.errors import InvalidRequest
from glm_cluster.records import FinishReason, ModelInfo, Task

_ROLES = {glm_pb2.ROLE_SYSTEM: "system", glm_pb2.ROLE_USER: "user", glm_pb2.ROLE_ASSISTANT: "assistant"}
TASKS: dict[Task, glm_pb2.Task] = {
    "generate": glm_pb2.TASK_GENERATE,
    "classify": glm_pb2.TASK_CLASSIFY,
    "classify-tokens": glm_pb2.TASK_CLASSIFY_TOKENS,
    "embed": glm_pb2.TASK_EMBED,
}


def chat_request(message: glm_pb2.ChatRequest) -> ChatCompletionRequest:
    """Validate a conversation."""
    refuse_many(message.messages)
    raw = _raw(message)
    raw["messages"] = turns(message.messages)
    return ChatCompletionRequest.parse(raw)


def completion_request(message: glm_pb2.GenerateRequest) -> CompletionRequest:
    """Validate a prompt to continue."""
    raw = _raw(message)
    if "text" in raw:
        raw["prompt"] = raw.pop("text")
    if "token_ids" in raw:
        raw["prompt"] = list(raw.pop("token_ids").ids)
    return CompletionRequest.parse(raw)


def _raw(message: glm_pb2.ChatRequest | glm_pb2.GenerateRequest) -> dict[str, Any]:
    """The fields that were given, `sampling` spread among the others as in JSON."""
    raw = fields_given(message)
    if sampling := raw.pop("sampling", None):
        raw |= {field.name: value for field, value in sampling.ListFields()}
    if "stop_token_ids" in raw:
        raw["stop_token_ids"] = list(raw["stop_token_ids"])
    return raw


def fields_given(message: Message) -> dict[str, Any]:
    """The fields that were given, by name. Those of a newer schema are refused, here and below."""
    if unknown := sorted(set(_unknown_fields(message, ""))):
        raise InvalidRequest(f"unsupported fields: {', '.join(unknown)}; leave them out", param=unknown[0])
    return {field.name: value for field, value in message.ListFields()}


def refuse_many(messages: Sized) -> None:
    """Refuse a long conversation before each message is looked into for unknown fields."""
    if len(messages) > MAX_ITEMS:
        raise InvalidRequest(f"messages: {too_many(MAX_ITEMS)}", param="messages")


def turns(messages: Iterable[glm_pb2.ChatMessage]) -> list[dict[str, object]]:
    """A conversation as in JSON."""
    return [_turn(message) for message in messages]


def _turn(message: glm_pb2.ChatMessage) -> dict[str, object]:
    turn: dict[str, object] = {}
    if message.HasField("role"):
        turn["role"] = _ROLES.get(message.role, str(message.role))
    if message.HasField("content"):
        turn["content"] = message.content
    return turn


def _unknown_fields(message: Message, path: str) -> Iterator[str]:
    """Paths of fields, here and below, that this version of the schema has no name for: `messages.0.field 7`."""
    unknown = UnknownFieldSet(message)
    for index in range(len(unknown)):
        yield f"{path}field {unknown[index].field_number}"
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if isinstance(value, Message):
            yield from _unknown_fields(value, f"{path}{field.name}.")
        else:
            for index, item in enumerate(value):
                yield from _unknown_fields(item, f"{path}{field.name}.{index}.")


def chat_response(head: Head, answer: Answer, prompt_ids: tuple[int, ...] | None) -> glm_pb2.ChatResponse:
    """A whole answer; `prompt_ids` when the client wants token ids."""
    return glm_pb2.ChatResponse(
        id=head.id,
        created=head.created,
        model=head.model,
        message=glm_pb2.ChatMessage(role=glm_pb2.ROLE_ASSISTANT, content=answer.text),
        finish_reason=_finish(answer.finish),
        usage=usage_message(answer.usage),
        prompt_token_ids=prompt_ids,
        token_ids=None if prompt_ids is None else answer.token_ids,
    )


def chat_chunk(head: Head, delta: Delta, prompt_ids: tuple[int, ...] | None, with_ids: bool) -> glm_pb2.ChatChunk:
    """A piece of an answer; `prompt_ids` in the first one when the client wants token ids."""
    return glm_pb2.ChatChunk(
        id=head.id,
        created=head.created,
        model=head.model,
        content=delta.text,
        finish_reason=_finish(delta.finish),
        usage=usage_message(delta.usage),
        prompt_token_ids=prompt_ids,
        token_ids=delta.token_ids if with_ids else None,
    )


def generate_chunk(
    head: Head, delta: Delta, prompt_ids: tuple[int, ...] | None, with_ids: bool
) -> glm_pb2.GenerateChunk:
    """A piece of a continuation; `prompt_ids` as in `chat_chunk`."""
    return glm_pb2.GenerateChunk(
        id=head.id,
        created=head.created,
        model=head.model,
        text=delta.text,
        finish_reason=_finish(delta.finish),
        usage=usage_message(delta.usage),
        prompt_token_ids=prompt_ids,
        token_ids=delta.token_ids if with_ids else None,
    )


def model_message(info: ModelInfo) -> glm_pb2.Model:
    """One served model."""
    return glm_pb2.Model(
        id=info.name,
        created=info.created,
        max_model_len=info.max_model_len,
        task=TASKS[info.task],
        labels=info.labels,
    )


def _finish(reason: FinishReason | None) -> glm_pb2.FinishReason:
    if reason is None:
        return glm_pb2.FINISH_REASON_UNSPECIFIED
    return glm_pb2.FINISH_REASON_STOP if reason == "stop" else glm_pb2.FINISH_REASON_LENGTH


def usage_message(usage: Usage | None) -> glm_pb2.Usage | None:
    """What a request cost; none before its end."""
    if usage is None:
        return None
    return glm_pb2.Usage(
        prompt_tokens=usage.num_prompt_tokens,
        completion_tokens=usage.num_output_tokens,
        total_tokens=usage.num_prompt_tokens + usage.num_output_tokens,
        cached_tokens=usage.num_cached_tokens,
    )
