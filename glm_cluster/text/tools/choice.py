"""What a model may write when it must call tools, as a grammar: a call made under it always parses.

Knows how each family writes calls, and the dialect of Lark that the engine's grammars are in. Refuses to know how a
grammar is applied. The output ends where the grammar is satisfied and a stop token follows.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from glm_cluster.errors import InvalidRequest
from glm_cluster.records import Grammar
from glm_cluster.text.tools import glm4, glm45
from glm_cluster.text.tools.arguments import types_of_schema
from glm_cluster.text.tools.output import Family
from glm_cluster.text.tools.tool import Tool

_ANYTHING = "/(?s:.+)/"
_BODIES = {  # of GLM-4's All Tools
    "python": _ANYTHING,
    "simple_browser": (
        r'/(search\("[^"\n]+"(, ?recency_days=[0-9]+)?\)|mclick\(\[[0-9]+(, ?[0-9]+)*\]\)|open_url\("[^"\n]+"\))/'
    ),
    "cogview": _ANYTHING,
}
_ONE_WAY = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as models write JSON

_MAY_ADD = {"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "patternProperties"}  # more properties


def forced_calls(tools: Sequence[Tool], family: Family, specials: Collection[str], *, parallel: bool) -> Grammar:
    """The grammar of an output that is one call of one of the tools, or of several where `parallel`.

    Where the calls of a family have a control token between them (GLM-4), there can be several only if there is one.
    """
    if not tools:
        raise InvalidRequest("tool_choice: there are no tools to choose from; give some", param="tool_choice")
    if family == "glm4":
        between = glm4.TURN if glm4.TURN in specials else None
        rules = [_glm4_rules(index, tool) for index, tool in enumerate(tools)]
    else:
        line_break = "\n" if family == "glm45" else ""
        between = _quoted(line_break) if line_break else ""  # a literal may not be empty
        rules = [_tagged_rules(index, tool, line_break) for index, tool in enumerate(tools)]
    start = f"start: call ({between} call)*" if parallel and between is not None else "start: call"
    call = "call: " + " | ".join(f"call_{index}" for index in range(len(tools)))
    return Grammar("lark", "\n".join((start, call, *(line for lines in rules for line in lines), "")))


def _glm4_rules(index: int, tool: Tool) -> list[str]:
    body = _BODIES[tool.name] if tool.built_in else f"%json {json.dumps(_call_schema(tool))}"
    return [f"call_{index}: {_quoted(tool.name + chr(10))} body_{index}", f"body_{index}: {body}"]


def _tagged_rules(index: int, tool: Tool, line_break: str) -> list[str]:
    """Each argument in the schema's order, those that are not required optional."""
    schema = _call_schema(tool)
    properties: Mapping[str, Any] = schema.get("properties") or {}
    required = schema.get("required") or ()
    arguments = [f"argument_{index}_{place}{'' if name in required else '?'}" for place, name in enumerate(properties)]
    opening, closing = _quoted(f"{glm45.OPEN}{tool.name}{line_break}"), _quoted(glm45.CLOSE)
    lines = [" ".join((f"call_{index}:", opening, *arguments, closing))]
    for place, (name, value) in enumerate(properties.items()):
        lines += _argument_rules(f"{index}_{place}", name, value, schema.get("$defs"), line_break)
    return lines


def _argument_rules(id: str, name: str, schema: Any, definitions: Any, line_break: str) -> Iterator[str]:
    before = _quoted(f"<arg_key>{name}</arg_key>{line_break}<arg_value>")
    after = _quoted(f"</arg_value>{line_break}")
    values = schema.get("enum") if isinstance(schema, Mapping) else None
    if types_of_schema(schema) != {"string"}:
        yield f"argument_{id}: {before} value_{id} {after}"
        yield f"value_{id}: %json {json.dumps(_one_way(schema, definitions))}"
    elif values:
        yield f"argument_{id}: {before} value_{id} {after}"
        yield f"value_{id}: " + " | ".join(_quoted(value) for value in values)
    else:
        yield f"argument_{id}: {before} value_{id}" + (f" {_quoted(line_break)}" if line_break else "")
        yield f'value_{id}[suffix="</arg_value>"]: /(?s:.*)/'


def _call_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments. A call names no argument that the schema does not."""
    schema = dict(tool.schema)
    if not tool.parameters and not tool.built_in:
        schema["properties"] = {}
    if "properties" in schema and schema.keys().isdisjoint(_MAY_ADD):
        schema.setdefault("additionalProperties", False)
    return _one_way(schema, None)


def _one_way(schema: Any, definitions: Any) -> dict[str, Any]:
    spelled = dict(schema) if isinstance(schema, Mapping) else {}
    if definitions is not None:
        spelled["$defs"] = definitions
    return {**spelled, "x-guidance": _ONE_WAY}


def _quoted(text: str) -> str:
    """A literal of the grammar, which has no way to write a control character."""
    if any(ord(char) < ord(" ") and char not in "\n\r\t" for char in text):
        raise InvalidRequest(f"tools: {text!r} has a control character in it; leave it out", param="tools")
    return json.dumps(text, ensure_ascii=False)
