"""A conversation with tools, in OpenAI's form, as a checkpoint's template wants it.

Knows where each dialect has tools, calls and results. Refuses to know what the template makes of them.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from glm_cluster.errors import InvalidRequest
from glm_cluster.text.tools.dialect import Dialect
from glm_cluster.text.tools.tool import BUILT_IN, Tool

Turn = Mapping[str, Any]
_RESULTS = ("tool", "observation")
_SPELLED_OUT = (
    "You can call the tools below. To call one, answer with its name alone on the first line and, from the second on, "
    "one JSON object with its arguments, and nothing else. Its result comes with the next message."
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What to render: messages, and the template's other variables."""

    messages: list[dict[str, Any]]
    variables: dict[str, Any] = field(default_factory=dict)


def conversation(messages: Sequence[Turn], tools: Sequence[Tool], dialect: Dialect) -> Conversation:
    """Put messages and tools in a template's form, or raise InvalidRequest naming the message at fault.

    A message is a mapping as in OpenAI's API: an assistant's may have `tool_calls`, a result has the role `tool` or
    GLM's own `observation`. One that is in GLM's form already (`metadata`) goes through as it is.
    """
    names = _names_of_calls(messages)
    turns: list[dict[str, Any]] = []
    for is_result, run in groupby(messages, key=lambda message: message["role"] in _RESULTS):
        for message in _in_order(run, names) if is_result else run:
            turns += _result(message, names, dialect) if is_result else _turn(message, dialect)
    described = [tool.for_template() for tool in dialect.understood(tools)]
    if not described:
        return Conversation(turns)
    if dialect.tools == "variable":
        return Conversation(turns, {"tools": described})
    if dialect.tools == "message":
        return Conversation([{"role": "system", "content": None, "tools": described}, *turns])
    return Conversation(_with_system_text(turns, _spelled_out(dialect.understood(tools))))


def _names_of_calls(messages: Sequence[Turn]) -> dict[str, str]:
    """The name of each call by its id, in the order of the calls."""
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    return {call["id"]: call["function"]["name"] for call in calls if call.get("id")}


def _in_order(results: Iterable[Turn], names: Mapping[str, str]) -> list[Turn]:
    """Results of one turn in the order of the calls, as no template shows their ids."""
    place = {id: index for index, id in enumerate(names)}
    known = list(results)
    for result in known:
        if (id := result.get("tool_call_id")) is not None and id not in place:
            raise InvalidRequest(
                f"messages: tool_call_id {id!r} is that of no call before; send the assistant's message with it",
                param="messages",
            )
    if any(result.get("tool_call_id") is None for result in known):
        return known
    return sorted(known, key=lambda result: place[result["tool_call_id"]])


def _result(message: Turn, names: Mapping[str, str], dialect: Dialect) -> list[dict[str, Any]]:
    content = message.get("content") or ""
    if dialect.result_role == "tool":
        return [{"role": "tool", "content": content}]
    if dialect.result_role == "observation":
        metadata = {"metadata": message["metadata"]} if message.get("metadata") else {}
        return [{"role": "observation", **metadata, "content": content or " "}]  # templates leave empty turns out
    name = names.get(message.get("tool_call_id") or "") or message.get("name") or "the tool"
    return [{"role": "user", "content": f"Result of {name}:\n{content}"}]


def _turn(message: Turn, dialect: Dialect) -> list[dict[str, Any]]:
    """A message that is no result."""
    role = "system" if message["role"] == "developer" else message["role"]
    if not (calls := message.get("tool_calls")):
        thought = ("reasoning_content",) if dialect.calls == "tool_calls" else ()
        kept = ("metadata", "name", *thought, "tool_calls", "tools")
        extra = {key: message[key] for key in kept if message.get(key) is not None}
        return [{"role": role, "content": message.get("content"), **extra}]
    if dialect.calls == "tool_calls":
        return [_with_native_calls(message, calls)]
    text = [{"role": role, "content": message["content"]}] if message.get("content") else []
    return [*text, *(_call(call, dialect) for call in calls)]


def _with_native_calls(message: Turn, calls: Iterable[Turn]) -> dict[str, Any]:
    functions = [
        {"name": call["function"]["name"], "arguments": _parsed(call["function"]["arguments"])} for call in calls
    ]
    extra = {key: message[key] for key in ("name", "reasoning_content") if message.get(key) is not None}
    return {
        "role": "assistant",
        "content": message.get("content") or "",
        **extra,
        "tool_calls": [{"type": "function", "function": function} for function in functions],
    }


def _call(call: Turn, dialect: Dialect) -> dict[str, Any]:
    """A call as GLM-4 wrote it."""
    name, body = call["function"]["name"], _body(call["function"], dialect)
    if dialect.calls == "metadata":
        return {"role": "assistant", "metadata": name, "content": body}
    return {"role": "assistant", "content": f"{name}\n{body}"}


def _body(function: Turn, dialect: Dialect) -> str:
    """The arguments as GLM-4 wrote them: those of All Tools are no JSON."""
    name, arguments = function["name"], function["arguments"]
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if (key := BUILT_IN.get(name)) is None or dialect.tools != "message":
        return str(arguments)
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return str(arguments)
    only_body = isinstance(parsed, dict) and parsed.keys() == {key} and isinstance(parsed[key], str)
    return str(parsed[key] if only_body else arguments)


def _parsed(arguments: object) -> object:
    if isinstance(arguments, Mapping):
        return arguments
    try:
        parsed = json.loads(str(arguments) or "{}")
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise InvalidRequest(
            "messages: a call's arguments must be a JSON object; send them as received", param="messages"
        )
    return parsed


def _spelled_out(tools: Iterable[Tool]) -> str:
    """The tools in words, for a template without a place for them."""
    described = [json.dumps(tool.for_template().get("function", {}), indent=4, ensure_ascii=False) for tool in tools]
    titled = (f"## {tool.name}\n\n{text}" for tool, text in zip(tools, described, strict=True))
    return "\n\n".join((_SPELLED_OUT, *titled))


def _with_system_text(turns: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """`text` in the system's message; templates want no second one."""
    if turns and turns[0]["role"] == "system":
        first = {**turns[0], "content": f"{turns[0].get('content') or ''}\n\n{text}"}
        return [first, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]
