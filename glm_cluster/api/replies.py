"""What the HTTP wire sends back: OpenAI's objects, whole or as server-sent events. Knows JSON, no sockets."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from typing_extensions import TypedDict

from glm_cluster.api.service import Answer, Delta, Usage
from glm_cluster.errors import GlmError, InvalidRequest
from glm_cluster.records import FinishReason

DONE = b"data: [DONE]\n\n"


class MessageBody(TypedDict, total=False):
    """An answer, or the next piece of one."""

    role: Literal["assistant"]
    content: str


class Choice(TypedDict, total=False):
    """The one choice of an answer: `message` or `delta` in a chat, `text` in a completion."""

    index: int
    message: MessageBody
    delta: MessageBody
    text: str
    logprobs: None
    finish_reason: FinishReason | None
    token_ids: Sequence[int]


class PromptTokensDetails(TypedDict):
    """Where the prompt's tokens came from."""

    cached_tokens: int


class UsageBody(TypedDict):
    """What a request cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Reply(TypedDict, total=False):
    """An answer, or one chunk of it."""

    id: str
    object: str
    created: int
    model: str
    choices: Sequence[Choice]
    usage: UsageBody | None
    prompt_token_ids: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What tells the two OpenAI routes apart in a reply."""

    route: str
    id_prefix: str
    whole: str  # the `object` of an answer
    chunk: str  # the `object` of a chunk
    answer: Callable[[str], Choice]
    opening: Callable[[str], Choice]  # the first piece
    piece: Callable[[str], Choice]  # any other


CHAT = Dialect(
    route="chat",
    id_prefix="chatcmpl-",
    whole="chat.completion",
    chunk="chat.completion.chunk",
    answer=lambda text: {"message": {"role": "assistant", "content": text}},
    opening=lambda text: {"delta": {"role": "assistant", "content": text}},
    piece=lambda text: {"delta": {"content": text}},
)
COMPLETION = Dialect(
    route="completions",
    id_prefix="cmpl-",
    whole="text_completion",
    chunk="text_completion",
    answer=lambda text: {"text": text},
    opening=lambda text: {"text": text},
    piece=lambda text: {"text": text},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What all replies to one request begin with."""

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))


def whole_reply(dialect: Dialect, head: Head, answer: Answer, prompt_ids: Sequence[int] | None) -> Reply:
    """The answer in one object; `prompt_ids` when the client wants token ids."""
    choice = _choice(dialect.answer(answer.text), answer.finish)
    reply = _reply(dialect.whole, head, [choice])
    reply["usage"] = usage_body(answer.usage)
    if prompt_ids is not None:
        choice["token_ids"] = answer.token_ids
        reply["prompt_token_ids"] = prompt_ids
    return reply


class EventWriter:
    """Turns the deltas of one stream into server-sent events. What never changes in a chunk is built once."""

    def __init__(self, dialect: Dialect, head: Head, *, include_usage: bool, prompt_ids: Sequence[int] | None) -> None:
        self._dialect = dialect
        self._head = head
        self._include_usage = include_usage
        self._prompt_ids = prompt_ids
        mark = "\0"
        plain = sse(self._chunk(_choice(dialect.piece(mark), None)))
        self._before, _, self._after = plain.rpartition(json.dumps(mark).encode())

    def first(self, delta: Delta) -> bytes:
        """The opening event; in a chat it says who speaks."""
        chunk = self._chunk(self._with_ids(_choice(self._dialect.opening(delta.text), delta.finish), delta))
        if self._prompt_ids is not None:
            chunk["prompt_token_ids"] = self._prompt_ids
        return sse(chunk) + self._closing(delta)

    def next(self, delta: Delta) -> bytes:
        """Any later event; empty when there is nothing to say."""
        if delta.finish is None and self._prompt_ids is None:
            return self._before + json.dumps(delta.text).encode() + self._after if delta.text else b""
        choice = _choice(self._dialect.piece(delta.text), delta.finish)
        return sse(self._chunk(self._with_ids(choice, delta))) + self._closing(delta)

    def _closing(self, delta: Delta) -> bytes:
        if delta.usage is None:
            return b""
        if not self._include_usage:
            return DONE
        return sse(_reply(self._dialect.chunk, self._head, []) | {"usage": usage_body(delta.usage)}) + DONE

    def _with_ids(self, choice: Choice, delta: Delta) -> Choice:
        if self._prompt_ids is not None:
            choice["token_ids"] = delta.token_ids
        return choice

    def _chunk(self, choice: Choice) -> Reply:
        chunk = _reply(self._dialect.chunk, self._head, [choice])
        if self._include_usage:
            chunk["usage"] = None  # as OpenAI does: null in every chunk but the one for usage
        return chunk


def sse(body: object) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def usage_body(usage: Usage) -> UsageBody:
    """Usage in OpenAI's words."""
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_output_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
    }


class Fault(TypedDict):
    """What went wrong; `param` names the field at fault where there is one."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(TypedDict):
    """An error in OpenAI's shape."""

    error: Fault


def error_body(error: GlmError) -> ErrorBody:
    """An error in OpenAI's shape."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def http_error_body(message: str, code: str) -> ErrorBody:
    """The same for what only HTTP can get wrong: a path, a method, a body's size."""
    return {"error": {"message": message, "type": InvalidRequest.kind, "param": None, "code": code}}


def _choice(content: Choice, finish: FinishReason | None) -> Choice:
    return {"index": 0, **content, "logprobs": None, "finish_reason": finish}


def _reply(kind: str, head: Head, choices: Sequence[Choice]) -> Reply:
    return {"id": head.id, "object": kind, "created": head.created, "model": head.model, "choices": choices}
