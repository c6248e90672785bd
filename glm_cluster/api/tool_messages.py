"""Tools and their calls in protobuf messages, and as what `tools` validates. Knows no calls of the service.

A message becomes the mapping that the same would be in JSON, so what is missing or unknown is refused by the validator.
"""

import json
from collections.abc import Sequence

from glm_cluster.api.answers import CallDelta, ToolCall
from glm_cluster.api.proto import glm_pb2
from glm_cluster.api.tools import MAX_PARAMETERS_BYTES
from glm_cluster.errors import InvalidRequest

_BUILT_IN = {
    glm_pb2.BUILT_IN_TOOL_PYTHON: "python",
    glm_pb2.BUILT_IN_TOOL_SIMPLE_BROWSER: "simple_browser",
    glm_pb2.BUILT_IN_TOOL_COGVIEW: "cogview",
}
_MODES = {
    glm_pb2.TOOL_CHOICE_MODE_NONE: "none",
    glm_pb2.TOOL_CHOICE_MODE_AUTO: "auto",
    glm_pb2.TOOL_CHOICE_MODE_REQUIRED: "required",
}


def tool_mapping(message: glm_pb2.Tool, path: str) -> dict[str, object]:
    """One tool; `path` is what to call it when refusing its schema."""
    if message.WhichOneof("tool") == "built_in":
        return {"type": _BUILT_IN.get(message.built_in, str(message.built_in))}
    function: dict[str, object] = {field.name: value for field, value in message.function.ListFields()}
    if message.function.HasField("parameters"):
        function["parameters"] = _schema(message.function.parameters, f"{path}.function.parameters")
    return {"type": "function", "function": function}


def tool_choice_mapping(message: glm_pb2.ToolChoice) -> object:
    """Which tools are to be called."""
    if message.WhichOneof("choice") == "function":
        return {"type": "function", "function": {"name": message.function}}
    return _MODES.get(message.mode, str(message.mode))


def call_mapping(message: glm_pb2.ToolCall) -> dict[str, object]:
    """One call made earlier."""
    function = {name: getattr(message, name) for name in ("name", "arguments") if message.HasField(name)}
    return {"type": "function", "function": function, **({"id": message.id} if message.HasField("id") else {})}


def call_messages(calls: Sequence[ToolCall]) -> list[glm_pb2.ToolCall]:
    """The calls of a whole answer."""
    return [glm_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in calls]


def call_delta_messages(calls: Sequence[CallDelta]) -> list[glm_pb2.ToolCallDelta]:
    """The pieces of calls in a piece of an answer."""
    return [
        glm_pb2.ToolCallDelta(index=call.index, id=call.id, name=call.name, arguments=call.arguments) for call in calls
    ]


def _schema(source: str, path: str) -> object:
    """A schema that comes as text; one of a bound length, so that no long one is parsed."""
    if len(source) > MAX_PARAMETERS_BYTES:
        raise InvalidRequest(f"{path}: it should have at most {MAX_PARAMETERS_BYTES} bytes", param=path)
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path}: it is no JSON ({error}); send a JSON schema", param=path) from error
