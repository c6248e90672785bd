"""How a checkpoint takes tools in and writes calls out, told from its template and its control tokens.

Knows what templates of GLM models, and of others, ask for. Refuses to know whose checkpoint it is: a model that was
renamed or trained on keeps its way of calling.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from glm_cluster.records import ReasoningParser, ToolParser
from glm_cluster.text.tools.output import Family
from glm_cluster.text.tools.tool import Tool

_BROKEN = re.compile(r"(\{function-name\}|</arg_key>)(\n|\\n)")  # a line break as it is, or in a string


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """Where in a conversation a template wants tools, calls and their results, and how the model writes calls.

    text: the template knows nothing of it, and it is spelled out in ordinary messages.
    """

    family: Family | None  # None: calls are not looked for
    thinks: bool
    tools: Literal["variable", "message", "text"]  # `tools`, a key of the first system message, or its content
    calls: Literal["tool_calls", "metadata", "text"]  # keys of an assistant's message, or its content
    result_role: Literal["tool", "observation", "user"]

    def understood(self, tools: Iterable[Tool]) -> tuple[Tool, ...]:
        """The tools as the model knows them: only GLM-4-9B-Chat's template describes All Tools."""
        return tuple(tool if self.tools == "message" else tool.as_function() for tool in tools)


def dialect_of(
    template: str,
    specials: Collection[str],
    *,
    tool_parser: ToolParser = "auto",
    reasoning_parser: ReasoningParser = "auto",
) -> Dialect:
    """Tell the dialect of a checkpoint from the source of its template and the names of its added tokens."""
    family = _family(template, specials) if tool_parser == "auto" else None if tool_parser == "none" else tool_parser
    thinks = "</think>" in template if reasoning_parser == "auto" else reasoning_parser == "think"
    native_calls = "tool_calls" in template
    knows_results = "observation" in template or "metadata" in template
    return Dialect(
        family=family,
        thinks=thinks,
        tools=_place_of_tools(template),
        calls="tool_calls" if native_calls else "metadata" if "metadata" in template else "text",
        result_role="tool" if _names_role(template, "tool") else "observation" if knows_results else "user",
    )


def _family(template: str, specials: Collection[str]) -> Family:
    """GLM-4's way needs no token of its own, so it is also that of models that know no tools."""
    if "<tool_call>" not in template or not ("<arg_key>" in template or "<arg_key>" in specials):
        return "glm4"
    return "glm45" if _BROKEN.search(template) else "glm47"


def _place_of_tools(template: str) -> Literal["variable", "message", "text"]:
    if any(form in template for form in ("['tools']", '["tools"]', ".tools")):
        return "message"
    return "variable" if "tools" in template else "text"


def _names_role(template: str, role: str) -> bool:
    return f"'{role}'" in template or f'"{role}"' in template
