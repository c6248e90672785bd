"""Protobuf messages to what `openai` validates, and answers to protobuf messages. Knows no calls.

Both wires share one validator: a message becomes the mapping that the same request would be in JSON.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from glm_cluster.api.answers import Answer, Answers, ChoiceFinish, Delta, Likelihood, Place, Usage
from glm_cluster.api.fields import MAX_BIASES, MAX_ITEMS, MAX_PROMPTS, MAX_VARIABLES
from glm_cluster.api.logprobs import finite
from glm_cluster.api.openai import ChatCompletionRequest, CompletionRequest
from glm_cluster.api.proto import glm_pb2
from glm_cluster.api.replies import Asked, Head
from glm_cluster.api.schema import MOST_NAMED, too_many
from glm_cluster.api.thinking import Effort
from glm_cluster.api.tool_messages import (
    call_delta_messages,
    call_mapping,
    call_messages,
    tool_choice_mapping,
    tool_mapping,
)
from glm_cluster.api.tools import MAX_CALLS, MAX_TOOLS
from glm_cluster.errors import InvalidRequest
from glm_cluster.records import ModelInfo, Task

_ROLES = {
    glm_pb2.ROLE_SYSTEM: "system",
    glm_pb2.ROLE_DEVELOPER: "developer",
    glm_pb2.ROLE_USER: "user",
    glm_pb2.ROLE_ASSISTANT: "assistant",
    glm_pb2.ROLE_TOOL: "tool",
    glm_pb2.ROLE_OBSERVATION: "observation",
}
_EFFORTS: dict[glm_pb2.ReasoningEffort, Effort] = {
    glm_pb2.REASONING_EFFORT_NONE: "none",
    glm_pb2.REASONING_EFFORT_MINIMAL: "minimal",
    glm_pb2.REASONING_EFFORT_LOW: "low",
    glm_pb2.REASONING_EFFORT_MEDIUM: "medium",
    glm_pb2.REASONING_EFFORT_HIGH: "high",
    glm_pb2.REASONING_EFFORT_XHIGH: "xhigh",
    glm_pb2.REASONING_EFFORT_MAX: "max",
}
_FINISHES: dict[ChoiceFinish | None, glm_pb2.FinishReason] = {
    None: glm_pb2.FINISH_REASON_UNSPECIFIED,
    "stop": glm_pb2.FINISH_REASON_STOP,
    "length": glm_pb2.FINISH_REASON_LENGTH,
    "tool_calls": glm_pb2.FINISH_REASON_TOOL_CALLS,
}
TASKS: dict[Task, glm_pb2.Task] = {
    "generate": glm_pb2.TASK_GENERATE,
    "classify": glm_pb2.TASK_CLASSIFY,
    "classify-tokens": glm_pb2.TASK_CLASSIFY_TOKENS,
    "embed": glm_pb2.TASK_EMBED,
}


def chat_request(message: glm_pb2.ChatRequest, *, stream: bool) -> ChatCompletionRequest:
    """Validate a conversation."""
    refuse_many(message)
    raw = _raw(message, stream=stream) | {"messages": []} | conversation_fields(message)
    if message.HasField("tool_choice"):
        raw["tool_choice"] = tool_choice_mapping(message.tool_choice)
    return ChatCompletionRequest.parse(raw)


def conversation_fields(message: glm_pb2.ChatRequest | glm_pb2.TokenizeRequest) -> dict[str, object]:
    """What goes into a chat template, as in JSON, where it was given."""
    raw: dict[str, object] = {}
    if message.messages:
        raw["messages"] = [_turn(turn) for turn in message.messages]
    if message.tools:
        raw["tools"] = [tool_mapping(tool, f"tools.{index}") for index, tool in enumerate(message.tools)]
    if message.HasField("reasoning_effort"):
        raw["reasoning_effort"] = _EFFORTS.get(message.reasoning_effort, str(message.reasoning_effort))
    if message.chat_template_kwargs:
        raw["chat_template_kwargs"] = {name: _value(value) for name, value in message.chat_template_kwargs.items()}
    return raw


def completion_request(message: glm_pb2.GenerateRequest) -> CompletionRequest:
    """Validate prompts to continue."""
    if len(message.prompts.prompts) > MAX_PROMPTS:
        raise InvalidRequest(f"prompt: {too_many(MAX_PROMPTS)}", param="prompt")
    raw = _raw(message, stream=True)
    for name in ("text", "token_ids", "prompts"):
        raw.pop(name, None)
    match message.WhichOneof("prompt"):
        case "text":
            raw["prompt"] = message.text
        case "token_ids":
            raw["prompt"] = list(message.token_ids.ids)
        case "prompts":
            raw["prompt"] = [_prompt(prompt) for prompt in message.prompts.prompts]
    return CompletionRequest.parse(raw)


def _prompt(message: glm_pb2.Input) -> object:
    return list(message.token_ids.ids) if message.WhichOneof("input") == "token_ids" else message.text


def _value(message: glm_pb2.TemplateValue) -> object:
    name = message.WhichOneof("value")
    return None if name is None else getattr(message, name)


def _raw(message: glm_pb2.ChatRequest | glm_pb2.GenerateRequest, *, stream: bool) -> dict[str, Any]:
    """The fields that were given, `sampling` spread among the others as in JSON."""
    raw = fields_given(message)
    if sampling := raw.pop("sampling", None):
        raw |= {field.name: value for field, value in sampling.ListFields()}
    for name in ("stop_token_ids", "stop", "bad_words"):
        if name in raw:
            raw[name] = list(raw[name])
    if "allowed_token_ids" in raw:
        raw["allowed_token_ids"] = list(raw["allowed_token_ids"].ids)
    if "logit_bias" in raw:
        if len(raw["logit_bias"]) > MAX_BIASES:
            raise InvalidRequest(f"logit_bias: {too_many(MAX_BIASES)}", param="logit_bias")
        raw["logit_bias"] = {str(id): bias for id, bias in raw["logit_bias"].items()}
    if "structured_outputs" in raw:
        raw["structured_outputs"] = _form(raw["structured_outputs"])
    if "continuous_usage_stats" in raw:
        raw["stream_options"] = {"continuous_usage_stats": raw.pop("continuous_usage_stats")}
    return {"stream": stream, **raw}


def _form(message: glm_pb2.StructuredOutputs) -> dict[str, object]:
    if (name := message.WhichOneof("form")) is None:
        return {}
    return {name: list(message.choice.texts) if name == "choice" else getattr(message, name)}


def fields_given(message: Message) -> dict[str, Any]:
    """The fields that were given, by name. Those of a newer schema are refused, here and below."""
    if unknown := list(dict.fromkeys(islice(_unknown_fields(message, ""), MOST_NAMED))):
        raise InvalidRequest(f"unsupported fields: {', '.join(unknown)}; leave them out", param=unknown[0])
    return {field.name: value for field, value in message.ListFields()}


def refuse_many(message: glm_pb2.ChatRequest | glm_pb2.TokenizeRequest) -> None:
    """Refuse long lists before each item is looked into: of two bytes here, it has a kilobyte as a mapping."""
    if len(message.messages) > MAX_ITEMS:
        raise InvalidRequest(f"messages: {too_many(MAX_ITEMS)}", param="messages")
    if len(message.chat_template_kwargs) > MAX_VARIABLES:
        raise InvalidRequest(f"chat_template_kwargs: {too_many(MAX_VARIABLES)}", param="chat_template_kwargs")
    if len(message.tools) > MAX_TOOLS:
        raise InvalidRequest(f"tools: {too_many(MAX_TOOLS)}", param="tools")
    for index, turn in enumerate(message.messages):
        if len(turn.tool_calls) > MAX_CALLS:
            where = f"messages.{index}.tool_calls"
            raise InvalidRequest(f"{where}: {too_many(MAX_CALLS)}", param=where)


def _turn(message: glm_pb2.ChatMessage) -> dict[str, object]:
    turn: dict[str, object] = {}
    if message.HasField("role"):
        turn["role"] = _ROLES.get(message.role, str(message.role))
    for name in ("content", "reasoning_content", "tool_call_id", "name"):
        if message.HasField(name):
            turn[name] = getattr(message, name)
    if message.tool_calls:
        turn["tool_calls"] = [call_mapping(call) for call in message.tool_calls]
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
        elif isinstance(value, Mapping):
            for name, item in value.items():
                if isinstance(item, Message):
                    yield from _unknown_fields(item, f"{path}{field.name}.{name}.")
        else:
            for index, item in enumerate(value):
                yield from _unknown_fields(item, f"{path}{field.name}.{index}.")


def chat_response(head: Head, answers: Answers, asked: Asked) -> glm_pb2.ChatResponse:
    """A whole answer."""
    return glm_pb2.ChatResponse(
        id=head.id,
        created=head.created,
        model=head.model,
        choices=[_chat_choice(index, answer, asked) for index, answer in enumerate(answers.choices)],
        usage=usage_message(answers.usage),
        prompt_token_ids=asked.prompt_of(0) if asked.token_ids else None,
        prompt_logprobs=place_messages(answers.choices[0].prompt_places),
    )


def _chat_choice(index: int, answer: Answer, asked: Asked) -> glm_pb2.ChatChoice:
    return glm_pb2.ChatChoice(
        index=index,
        message=glm_pb2.ChatMessage(
            role=glm_pb2.ROLE_ASSISTANT,
            content=None if answer.calls and not answer.text else answer.text,
            tool_calls=call_messages(answer.calls),
            reasoning_content=answer.reasoning or None,
        ),
        finish_reason=_FINISHES[answer.finish],
        stop_reason=_stop_reason(answer.stop_reason),
        token_ids=answer.token_ids if asked.token_ids else None,
        logprobs=place_messages(answer.places),
    )


class ChunkWriter:
    """Turns the deltas of one stream into chunks."""

    def __init__(self, head: Head, asked: Asked) -> None:
        self._head = head
        self._asked = asked
        self._begun: set[int] = set()

    def size_bytes(self, delta: Delta) -> int:
        """What it costs to write the chunk of a delta, beside its text."""
        return self._asked.size_bytes([delta], num_prompts=delta.index not in self._begun)

    def chat(self, delta: Delta) -> glm_pb2.ChatChunk:
        """A piece of an answer; of the prompt tells the first choice's first."""
        is_first = self._is_first(delta) and delta.index == 0
        return glm_pb2.ChatChunk(
            id=self._head.id,
            created=self._head.created,
            model=self._head.model,
            content=delta.text,
            reasoning_content=delta.reasoning,
            tool_calls=call_delta_messages(delta.calls),
            finish_reason=_FINISHES[delta.finish],
            usage=usage_message(delta.usage or delta.so_far),
            prompt_token_ids=self._asked.prompt_of(0) if is_first and self._asked.token_ids else None,
            token_ids=delta.token_ids if self._asked.token_ids else None,
            index=delta.index,
            stop_reason=_stop_reason(delta.stop_reason),
            logprobs=place_messages(delta.places),
            prompt_logprobs=place_messages(delta.prompt_places) if is_first else None,
        )

    def continuation(self, delta: Delta) -> glm_pb2.GenerateChunk:
        """A piece of a continuation; of its prompt tells each choice's first."""
        is_first = self._is_first(delta)
        return glm_pb2.GenerateChunk(
            id=self._head.id,
            created=self._head.created,
            model=self._head.model,
            text=delta.text,
            finish_reason=_FINISHES[delta.finish],
            usage=usage_message(delta.usage or delta.so_far),
            prompt_token_ids=self._asked.prompt_of(delta.index) if is_first and self._asked.token_ids else None,
            token_ids=delta.token_ids if self._asked.token_ids else None,
            index=delta.index,
            stop_reason=_stop_reason(delta.stop_reason),
            logprobs=place_messages(delta.places),
            prompt_logprobs=place_messages(delta.prompt_places),
        )

    def _is_first(self, delta: Delta) -> bool:
        if delta.index in self._begun:
            return False
        self._begun.add(delta.index)
        return True


def place_messages(places: Sequence[Place]) -> list[glm_pb2.PlaceLogprobs] | None:
    """How likely the tokens of a text were."""
    return [_place(place) for place in places] if places else None


def _place(place: Place) -> glm_pb2.PlaceLogprobs:
    unlikely = glm_pb2.TokenLogprob(
        token_id=place.token_id, token=place.spelling.decode("utf-8", "replace"), utf8=place.spelling
    )
    return glm_pb2.PlaceLogprobs(
        chosen=unlikely if place.likelihood is None else _likelihood(place.likelihood),
        top=[_likelihood(one) for one in place.top],
        text_offset=place.offset,
    )


def _likelihood(found: Likelihood) -> glm_pb2.TokenLogprob:
    return glm_pb2.TokenLogprob(
        token_id=found.token_id,
        token=found.spelling.decode("utf-8", "replace"),
        utf8=found.spelling,
        logprob=finite(found.logprob),
        rank=found.rank,
    )


def _stop_reason(reason: str | int | None) -> glm_pb2.StopReason | None:
    if reason is None:
        return None
    return glm_pb2.StopReason(text=reason) if isinstance(reason, str) else glm_pb2.StopReason(token_id=reason)


def model_message(info: ModelInfo) -> glm_pb2.Model:
    """One served model."""
    return glm_pb2.Model(
        id=info.name,
        created=info.created,
        max_model_len=info.max_model_len,
        task=TASKS[info.task],
        labels=info.labels,
    )


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
