"""What an output is held to is known again by whatever it depends on."""

from dataclasses import replace
from typing import Any

import pytest

from glm_cluster.api.demand import held_key, held_output
from glm_cluster.api.openai import ChatCompletionRequest
from glm_cluster.text.tools.dialect import Dialect

GLM4 = Dialect(family="glm4", thinks=False, tools="variable", calls="tool_calls", result_role="tool")
SAID: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def tool(name: str = "f", **function: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters, "strict": True, **function}}


FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
ASKED: list[dict[str, Any]] = [
    {"tools": [tool()]},
    {"tools": [tool(), tool("g")]},
    {"tools": [tool("g"), tool()]},
    {"tools": [tool(strict=False)], "response_format": {"type": "json_object"}},
    {"tools": [tool()], "tool_choice": "required"},
    {"tools": [tool()], "tool_choice": "required", "parallel_tool_calls": False},
    {"tools": [tool(), tool("g")], "tool_choice": {"type": "function", "function": {"name": "g"}}},
    {"tools": [tool(parameters={"properties": {"b": {"type": "null"}, "a": {"type": "integer"}}})]},
    {"tools": [tool(parameters={"properties": {"a": {"const": 1}}})]},
    {"tools": [tool(parameters={"properties": {"a": {"const": True}}})]},
    {"tools": [tool()], "response_format": FORM},
    {"tools": [tool()], "structured_outputs": {"json": {"type": "object"}}},
    {"tools": [tool()], "structured_outputs": {"regex": "a"}},
]


def key(asked: dict[str, Any], dialect: Dialect = GLM4, **state: Any) -> bytes:
    request = ChatCompletionRequest.model_validate({**SAID, **asked})
    return held_key(request, dialect, **{"thinking": None, "opens_line": False, **state})


def test_no_two_requests_that_are_held_to_different_outputs_have_a_key_in_common() -> None:
    keys = [key(asked) for asked in ASKED]
    assert len(set(keys)) == len(ASKED)
    for other in ({"thinking": "after"}, {"opens_line": True}, {"dialect": replace(GLM4, family="glm47")}):
        assert key(ASKED[0], **other) not in keys


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_requests_that_are_held_to_the_same_have_the_same_key(asked: dict[str, Any]) -> None:
    """Whoever asks, and whatever was said before."""
    later = {
        **asked,
        "user": "b",
        "temperature": 0.5,
        "messages": [*SAID["messages"], {"role": "user", "content": "?"}],
    }
    assert key(later) == key(asked)
    requests = [ChatCompletionRequest.model_validate({**SAID, **one}) for one in (asked, later)]
    first, again = (held_output(one, GLM4, (), thinking=None, opens_line=False) for one in requests)
    assert first == again
