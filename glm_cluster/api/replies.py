"""What the HTTP wire sends back: OpenAI's objects, whole or as server-sent events. Knows JSON, no sockets."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Required

from typing_extensions import TypedDict

from glm_cluster.api.answers import (
    ID_BYTES,
    Answer,
    Answers,
    CallDelta,
    ChoiceFinish,
    Delta,
    Place,
    ToolCall,
    Usage,
    told_bytes,
)
from glm_cluster.api.generations import Prepared
from glm_cluster.api.json_pieces import json_pieces
from glm_cluster.api.logprobs import (
    ChatLogprobs,
    PromptLogprobs,
    TextLogprobs,
    chat_logprobs_body,
    prompt_logprobs_body,
    text_logprobs_body,
)
from glm_cluster.api.openai import GenerationBody
from glm_cluster.api.window import LOOP_BYTES
from glm_cluster.errors import GlmError, InvalidRequest

DONE = b"data: [DONE]\n\n"
_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


class FunctionBody(TypedDict, total=False):
    """What a call calls, with what; or what its arguments go on with."""

    name: str
    arguments: str


class CallBody(TypedDict, total=False):
    """A tool call, or the next piece of one."""

    index: int  # in pieces alone
    id: str
    type: Literal["function"]
    function: FunctionBody


class MessageBody(TypedDict, total=False):
    """An answer, or the next piece of one."""

    role: Literal["assistant"]
    reasoning_content: str
    content: str | None
    tool_calls: Sequence[CallBody]


class PromptFields(TypedDict, total=False):
    """What is told of a prompt."""

    prompt_token_ids: Sequence[int]
    prompt_logprobs: PromptLogprobs | None


class Choice(PromptFields, total=False):
    """One choice of an answer: `message` or `delta` in a chat, `text` in a completion."""

    index: int
    message: MessageBody
    delta: MessageBody
    text: str
    logprobs: ChatLogprobs | TextLogprobs | None
    finish_reason: ChoiceFinish | None
    stop_reason: str | int | None
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


class Reply(PromptFields, total=False):
    """An answer, or one chunk of it."""

    id: Required[str]
    object: Required[str]
    created: Required[int]
    model: Required[str]
    choices: Required[Sequence[Choice]]
    usage: UsageBody | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyStyle:
    """What tells the two OpenAI routes apart in a reply."""

    route: str
    id_prefix: str
    whole: str  # the `object` of an answer
    chunk: str  # the `object` of a chunk
    answer: Callable[[Answer], Choice]
    opening: Callable[[Delta], Choice]  # the first piece
    piece: Callable[[Delta], Choice]  # any other
    logprobs: Callable[[Sequence[Place]], ChatLogprobs | TextLogprobs]
    tells_prompt_once: bool  # beside the choices, not in each of them


def _message(answer: Answer) -> Choice:
    message: MessageBody = {"role": "assistant", "content": answer.text or None if answer.calls else answer.text}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [_call(call) for call in answer.calls]
    return {"message": message}


def _call(call: ToolCall) -> CallBody:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _message_opening(delta: Delta) -> Choice:
    message: MessageBody = {"role": "assistant", "content": delta.text}
    return {"delta": {**message, **_beside_text(delta)}}


def _message_piece(delta: Delta) -> Choice:
    """Of a delta without text, `content` only where there is nothing else to say."""
    beside = _beside_text(delta)
    message: MessageBody = {"content": delta.text} if delta.text or not beside else {}
    return {"delta": {**message, **beside}}


def _beside_text(delta: Delta) -> MessageBody:
    message: MessageBody = {}
    if delta.reasoning:
        message["reasoning_content"] = delta.reasoning
    if delta.calls:
        message["tool_calls"] = [_call_piece(call) for call in delta.calls]
    return message


def _call_piece(call: CallDelta) -> CallBody:
    if call.id is None or call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {
        "index": call.index,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


CHAT = ReplyStyle(
    route="chat",
    id_prefix="chatcmpl-",
    whole="chat.completion",
    chunk="chat.completion.chunk",
    answer=_message,
    opening=_message_opening,
    piece=_message_piece,
    logprobs=chat_logprobs_body,
    tells_prompt_once=True,
)
COMPLETION = ReplyStyle(
    route="completions",
    id_prefix="cmpl-",
    whole="text_completion",
    chunk="text_completion",
    answer=lambda answer: {"text": answer.text},
    opening=lambda delta: {"text": delta.text},
    piece=lambda delta: {"text": delta.text},
    logprobs=text_logprobs_body,
    tells_prompt_once=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What all replies to one request begin with."""

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a client wants to be told beside the text."""

    prompts: Sequence[Sequence[int]]  # the ids of each, of which every one has `n` choices
    n: int = 1
    token_ids: bool = False
    logprobs: bool = False
    prompt_logprobs: bool = False
    usage: bool = False  # at the end of a stream
    usage_so_far: bool = False  # in each of its chunks

    def prompt_of(self, index: int) -> Sequence[int]:
        """The ids of the prompt that a choice continues."""
        return self.prompts[index // self.n]

    def size_bytes(self, pieces: Sequence[Delta | Answer], *, num_prompts: int) -> int:
        """What it costs to tell what is asked of choices, and of that many prompts, beside the text."""
        num_bytes = told_bytes(pieces)
        if self.token_ids:
            num_ids = sum(len(piece.token_ids) for piece in pieces)
            num_ids += num_prompts * max(map(len, self.prompts))
            num_bytes += ID_BYTES * num_ids
        return num_bytes


def asked(request: GenerationBody, prepared: Prepared) -> Asked:
    """What a request wants to be told."""
    options = request.stream_options
    return Asked(
        prompts=prepared.prompts,
        n=request.n,
        token_ids=request.return_token_ids,
        logprobs=request.num_logprobs is not None,
        prompt_logprobs=request.prompt_logprobs is not None,
        usage=options is not None and options.include_usage,
        usage_so_far=prepared.tells_usage_so_far,
    )


def whole_reply(style: ReplyStyle, head: Head, answers: Answers, asked: Asked) -> Reply:
    """The answer in one object."""
    reply = _reply(style.whole, head, [])
    reply["choices"] = [_answer(style, index, answer, asked) for index, answer in enumerate(answers.choices)]
    reply["usage"] = usage_body(answers.usage)
    if style.tells_prompt_once:
        _tell_prompt(reply, asked, 0, answers.choices[0].prompt_places)
    return reply


def _answer(style: ReplyStyle, index: int, answer: Answer, asked: Asked) -> Choice:
    choice = _choice(index, style.answer(answer), _logprobs(style, answer.places, asked), answer.finish)
    choice["stop_reason"] = answer.stop_reason
    if asked.token_ids:
        choice["token_ids"] = answer.token_ids
    if not style.tells_prompt_once:
        _tell_prompt(choice, asked, index, answer.prompt_places)
    return choice


def _logprobs(style: ReplyStyle, places: Sequence[Place], asked: Asked) -> ChatLogprobs | TextLogprobs | None:
    return style.logprobs(places) if asked.logprobs else None


def _tell_prompt(body: PromptFields, asked: Asked, index: int, places: Sequence[Place]) -> None:
    """Put into `body` what is told of the prompt that a choice continues."""
    if asked.token_ids:
        body["prompt_token_ids"] = asked.prompt_of(index)
    if asked.prompt_logprobs:
        body["prompt_logprobs"] = prompt_logprobs_body(places)


class EventWriter:
    """Turns the deltas of one stream into server-sent events. What never changes in a chunk is built once."""

    def __init__(self, style: ReplyStyle, head: Head, asked: Asked) -> None:
        self._style = style
        self._head = head
        self._asked = asked
        self._is_plain = not (asked.token_ids or asked.logprobs or asked.usage_so_far)
        self._frames: dict[int, tuple[bytes, bytes]] = {}  # of each choice that has begun, what is around its text

    def size_bytes(self, delta: Delta) -> int:
        """What it costs to write the event of a delta, beside its text."""
        return self._asked.size_bytes([delta], num_prompts=delta.index not in self._frames)

    def event(self, delta: Delta) -> bytes:
        """The event of a delta; empty when there is nothing to say. A choice's first says in a chat who speaks."""
        frame = self._frames.get(delta.index)
        if frame is None:
            self._frames[delta.index] = self._frame(delta.index)
            return self._chunk(delta, self._style.opening(delta), is_first=True) + self._closing(delta)
        if self._is_plain and delta.finish is None and not (delta.reasoning or delta.calls):
            return frame[0] + json.dumps(delta.text).encode() + frame[1] if delta.text else b""
        return self._chunk(delta, self._style.piece(delta)) + self._closing(delta)

    def _chunk(self, delta: Delta, content: Choice, *, is_first: bool = False) -> bytes:
        places = _logprobs(self._style, delta.places, self._asked) if delta.places else None
        choice = _choice(delta.index, content, places, delta.finish)
        if delta.finish is not None:
            choice["stop_reason"] = delta.stop_reason
        if self._asked.token_ids:
            choice["token_ids"] = delta.token_ids
        chunk = self._around(choice, delta.so_far)
        if is_first and not self._style.tells_prompt_once:
            _tell_prompt(choice, self._asked, delta.index, delta.prompt_places)
        elif is_first and delta.index == 0:
            _tell_prompt(chunk, self._asked, 0, delta.prompt_places)
        return sse(chunk, is_long=self._asked.size_bytes([delta], num_prompts=is_first) > LOOP_BYTES)

    def _closing(self, delta: Delta) -> bytes:
        if delta.usage is None:
            return b""
        if not self._asked.usage:
            return DONE
        return sse(_reply(self._style.chunk, self._head, []) | {"usage": usage_body(delta.usage)}) + DONE

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        mark = "\0"
        plain = sse(self._around(_choice(index, self._style.piece(Delta(mark, ())), None, None), None))
        before, _, after = plain.rpartition(json.dumps(mark).encode())
        return before, after

    def _around(self, choice: Choice, so_far: Usage | None) -> Reply:
        chunk = _reply(self._style.chunk, self._head, [choice])
        if so_far is not None:
            chunk["usage"] = usage_body(so_far)
        elif self._asked.usage:
            chunk["usage"] = None  # as OpenAI does: null in every chunk but the one for usage
        return chunk


def sse(body: object, *, is_long: bool = False) -> bytes:
    """One server-sent event."""
    return b"data: " + (b"".join(json_pieces(body)) if is_long else dumps(body)) + b"\n\n"


def dumps(body: object) -> bytes:
    """JSON without spaces."""
    return _JSON.encode(body).encode()


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


def _choice(
    index: int, content: Choice, logprobs: ChatLogprobs | TextLogprobs | None, finish: ChoiceFinish | None
) -> Choice:
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}


def _reply(kind: str, head: Head, choices: Sequence[Choice]) -> Reply:
    return {"id": head.id, "object": kind, "created": head.created, "model": head.model, "choices": choices}
