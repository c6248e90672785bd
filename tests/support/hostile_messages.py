"""The gRPC message that says what an HTTP body says, where there is one, and some that no JSON could be."""

import json
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message
from support.hostile_bodies import CHAT, COMPLETIONS, Attack

from glm_cluster.api.proto import glm_pb2

_SAMPLING = {field.name for field in glm_pb2.Sampling.DESCRIPTOR.fields}
_NOT_TO_BE_SAID = (TypeError, ValueError, KeyError, AttributeError, OverflowError)


def twin(attack: Attack) -> Message | None:
    """The same over gRPC; None for what its types cannot say."""
    if not isinstance(attack.body, dict) or attack.path not in (CHAT, COMPLETIONS):
        return None
    try:
        return (_chat if attack.path == CHAT else _generate)(dict(attack.body))
    except _NOT_TO_BE_SAID:
        return None


def heavy() -> Iterator[tuple[str, bytes]]:
    """Chat requests just short of what a body may have, and of much more once they are looked into."""
    hello = glm_pb2.ChatMessage(role=glm_pb2.ROLE_USER, content="hello")
    whole = glm_pb2.ChatRequest(model="tiny", messages=[hello], max_tokens=1).SerializeToString()
    caller = glm_pb2.ChatMessage(role=glm_pb2.ROLE_ASSISTANT)
    caller.MergeFromString(b"\x1a\x00" * 1_900_000)
    yield "calls in a message", whole + glm_pb2.ChatRequest(messages=[caller]).SerializeToString()
    yield "messages", whole + b"\x12\x00" * 1_900_000
    yield "tools", whole + b"\xf2\x01\x00" * 1_300_000
    yield "stop strings", whole + b"\x4a\x00" * 1_900_000
    yield "fields that nobody knows", whole + b"\xfa\x7f\x00" * 1_300_000
    variables = {f"{i:06}": glm_pb2.TemplateValue(boolean=True) for i in range(200_000)}
    yield "variables", whole + glm_pb2.ChatRequest(chat_template_kwargs=variables).SerializeToString()


def _generate(fields: dict[str, Any]) -> Message:
    prompt = _prompt(fields.pop("prompt"))
    return glm_pb2.GenerateRequest(**prompt, **_common(fields))


def _prompt(prompt: Any) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"text": prompt}
    if prompt and not isinstance(prompt[0], int):
        return {"prompts": {"prompts": [_one(each) for each in prompt]}}
    return {"token_ids": {"ids": prompt}}


def _one(prompt: Any) -> dict[str, Any]:
    return {"text": prompt} if isinstance(prompt, str) else {"token_ids": {"ids": prompt}}


def _chat(fields: dict[str, Any]) -> Message:
    if "tools" in fields:
        fields["tools"] = [_tool(tool) for tool in fields["tools"]]
    if isinstance(choice := fields.get("tool_choice"), str):
        fields["tool_choice"] = {"mode": f"TOOL_CHOICE_MODE_{choice.upper()}"}
    elif choice is not None:
        fields["tool_choice"] = {"function": choice["function"]["name"]}
    if "response_format" in fields:
        fields["structured_outputs"] = {"json": fields.pop("response_format")["json_schema"]["schema"]}
    if "chat_template_kwargs" in fields:
        given = fields["chat_template_kwargs"]
        fields["chat_template_kwargs"] = {name: _value(value) for name, value in given.items()}
    messages = [_message(dict(message)) for message in fields.pop("messages")]
    return glm_pb2.ChatRequest(messages=messages, **_common(fields))


def _message(fields: dict[str, Any]) -> glm_pb2.ChatMessage:
    if "role" in fields:
        fields["role"] = f"ROLE_{fields['role'].upper()}"
    if "tool_calls" in fields:
        fields["tool_calls"] = [
            {"id": call["id"], "name": call["function"]["name"], "arguments": call["function"]["arguments"]}
            for call in fields["tool_calls"]
        ]
    return glm_pb2.ChatMessage(**fields)


def _tool(tool: dict[str, Any]) -> glm_pb2.Tool:
    function = dict(tool["function"])
    if "parameters" in function:
        function["parameters"] = json.dumps(function["parameters"])
    return glm_pb2.Tool(function=function)


def _value(value: Any) -> dict[str, Any]:
    names = {bool: "boolean", int: "integer", float: "number", str: "text"}
    return {names[type(value)]: value}


def _common(fields: dict[str, Any]) -> dict[str, Any]:
    if isinstance(fields.get("stop"), str):
        fields["stop"] = [fields["stop"]]
    if "structured_outputs" in fields:
        fields["structured_outputs"] = _form(dict(fields["structured_outputs"]))
    sampling = {name: fields.pop(name) for name in _SAMPLING & fields.keys()}
    if "logit_bias" in sampling:
        sampling["logit_bias"] = _biases(sampling["logit_bias"])
    if "allowed_token_ids" in sampling:
        sampling["allowed_token_ids"] = {"ids": sampling["allowed_token_ids"]}
    return {"sampling": glm_pb2.Sampling(**sampling), **fields}


def _form(form: dict[str, Any]) -> glm_pb2.StructuredOutputs:
    if len(form) > 1:
        raise ValueError("a oneof holds one")
    if isinstance(form.get("json"), dict):
        form["json"] = json.dumps(form["json"])
    if "choice" in form:
        form["choice"] = {"texts": form["choice"]}
    return glm_pb2.StructuredOutputs(**form)


def _biases(biases: dict[str, float]) -> dict[int, float]:
    if any(str(int(key)) != key for key in biases):
        raise ValueError("a number is spelled in one way")
    return {int(key): bias for key, bias in biases.items()}
