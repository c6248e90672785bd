"""One tool's calls as rules of a grammar, in the way that each family writes them: what they match is read as a call.

Knows tools, their schemas, and the dialect of Lark that the engine's grammars are in. Refuses to know what stands
before, between and after calls.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from glm_cluster.errors import InvalidRequest
from glm_cluster.text.grammar.cleaning import cleaned
from glm_cluster.text.grammar.schema import ADVICE, loosely, strictly
from glm_cluster.text.grammar.scrutiny import SPENT, Scrutiny
from glm_cluster.text.tools import glm45
from glm_cluster.text.tools.arguments import resolved, types_of_schema
from glm_cluster.text.tools.raw_string import listed_strings, raw_string
from glm_cluster.text.tools.references import Parts
from glm_cluster.text.tools.strictness import check_arguments, strict_string
from glm_cluster.text.tools.tool import Tool

ANYTHING = "/(?s:.+)/"
_UNQUOTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")
_VALUE_END = "</arg_value>"
_BODIES = {  # of GLM-4's All Tools
    "python": ANYTHING,
    "simple_browser": (
        r'/(search\("[^"\n]+"(, ?recency_days=[0-9]+)?\)|mclick\(\[[0-9]+(, ?[0-9]+)*\]\)|open_url\("[^"\n]+"\))/'
    ),
    "cogview": ANYTHING,
}
_MAY_ADD = {"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "patternProperties"}  # more properties


def glm4_rules(index: int, tool: Tool, scrutiny: Scrutiny) -> Iterator[str]:
    """The rules of `call_{index}`: the name's line, and all of the arguments' body."""
    yield f"call_{index}: {quoted(tool.name + chr(10))} body_{index}"
    body = _BODIES[tool.name] if tool.built_in else _json(_call_schema(tool), tool, {"type": "object"}, scrutiny)
    yield f"body_{index}: {body}"


def tagged_rules(
    index: int, tool: Tool, line_break: str, specials: Collection[str], scrutiny: Scrutiny
) -> Iterator[str]:
    """The rules of `call_{index}` between tags. A tag that is a token is named, as it matches no text."""
    return _Tagged(index, tool, line_break, specials, scrutiny).rules()


def lenient_tagged_rules(index: int, tool: Tool) -> list[str]:
    """The rules of `call_{index}` with any arguments, where all tags are tokens."""
    argument = f"<arg_key> /[^<]+/ </arg_key> space_{index} <arg_value> /(?s:.*)/ </arg_value> space_{index}"
    return [
        f"call_{index}: {glm45.OPEN} {quoted(tool.name)} space_{index} argument_{index}* {glm45.CLOSE}",
        f"argument_{index}: {argument}",
        rf"space_{index}: /\s*/",
    ]


class _Tagged:
    """What `tagged_rules` returns."""

    def __init__(self, index: int, tool: Tool, line_break: str, specials: Collection[str], scrutiny: Scrutiny) -> None:
        self._index = index
        self._tool = tool
        self._line_break = line_break
        self._specials = specials
        self._scrutiny = scrutiny
        self._schema = _call_schema(tool)

    def rules(self) -> Iterator[str]:
        """Each argument in the schema's order, those that are not required optional."""
        if self._tool.strict:
            check_arguments(self._schema, self._tool)
        properties = self._properties()
        required = named if isinstance(named := self._schema.get("required"), list) else ()
        parts = Parts(self._schema)
        ids = [f"{self._index}_{place}" for place in range(len(properties))]
        arguments = [
            f"argument_{id}{'' if name in required else '?'}" for id, name in zip(ids, properties, strict=True)
        ]
        opening, closing = self._sequence(glm45.OPEN, self._tool.name + self._line_break), self._sequence(glm45.CLOSE)
        yield " ".join((f"call_{self._index}:", opening, *arguments, closing))
        for id, (name, value) in zip(ids, properties.items(), strict=True):
            before = self._sequence("<arg_key>", name, "</arg_key>", self._line_break, "<arg_value>")
            yield f"argument_{id}: {before} value_{id} {self._sequence(self._line_break)}"
            if types_of_schema(value, self._schema) == {"string"}:
                yield from self._string(f"value_{id}", self._string_schema(name, value))
            else:
                yield f"value_{id}: value_{id}_json {self._sequence(_VALUE_END)}"
                yield f"value_{id}_json: {self._json(parts, value)}"

    def _properties(self) -> Mapping[str, Any]:
        """Those whose names can be written, unless all must be."""
        properties: Mapping[str, Any] = self._schema.get("properties") or {}
        if self._tool.strict:
            return properties
        return {name: value for name, value in properties.items() if is_quotable(name)}

    def _json(self, parts: Parts, value: object) -> str:
        """Once time is up no document is made either, which all definitions may be a part of."""
        part = {} if self._scrutiny.is_spent and not self._tool.strict else parts.document(value)
        return _json(part, self._tool, {}, self._scrutiny)

    def _string(self, rule: str, schema: object) -> Iterator[str]:
        """A string and its closing tag. It is written as it is, so that its tag alone ends it."""
        if self._tool.strict and self._scrutiny.is_spent:
            raise _unkept(self._tool, SPENT)
        closing = self._sequence(_VALUE_END)
        if values := self._listed(schema):
            yield f"{rule}: ({' | '.join(map(quoted, values))}) {closing}"
        else:
            is_token = _VALUE_END in self._specials
            yield f"{rule}: {rule.upper()} {closing}" if is_token else f"{rule}[suffix={closing}]: {rule.upper()}"
            yield f"{rule.upper()}: {raw_string(schema, _VALUE_END, strict=self._tool.strict)}"

    def _listed(self, schema: object) -> list[Any]:
        """Any string will do where one of those listed cannot be written."""
        values = listed_strings(schema)
        return values if self._tool.strict or all(map(is_quotable, values)) else []

    def _string_schema(self, name: str, schema: object) -> object:
        if self._tool.strict:
            return strict_string(schema, self._schema, self._tool, name, _VALUE_END)
        return resolved(schema, self._schema)

    def _sequence(self, *parts: str) -> str:
        return " ".join(part if part in self._specials else quoted(part) for part in parts if part)


def _call_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments. A call names no argument that the schema does not."""
    schema = {"type": "object", **cleaned(tool.schema)}
    if not tool.parameters and not tool.built_in:
        schema["properties"] = {}
    if "properties" in schema and schema.keys().isdisjoint(_MAY_ADD):
        schema.setdefault("additionalProperties", False)
    return schema


def _json(schema: Mapping[str, Any], tool: Tool, at_worst: Mapping[str, Any], scrutiny: Scrutiny) -> str:
    """What spells a value of a schema; of one that no engine could follow, `at_worst`, unless the tool is strict."""
    if tool.strict:
        return f"%json {json.dumps(_strictly(schema, tool, scrutiny))}"
    loose = loosely(at_worst if scrutiny.is_spent else schema, scrutiny)
    return f"%json {json.dumps(loosely(at_worst) if scrutiny.fault(loose) else loose)}"


def _strictly(schema: Mapping[str, Any], tool: Tool, scrutiny: Scrutiny) -> dict[str, Any]:
    try:
        strict = strictly(schema)
        why = scrutiny.fault(strict)
    except InvalidRequest as error:
        why = error.message
    if why:
        raise _unkept(tool, why)
    return strict


def _unkept(tool: Tool, why: str) -> InvalidRequest:
    whose = f"what {tool.name!r} asks of its arguments"
    return InvalidRequest(f"tools: strict: {whose} cannot be kept ({why}); {ADVICE}", param="tools")


def quoted(text: str) -> str:
    """A literal of the grammar, which has no way to write a control character."""
    if not is_quotable(text):
        raise InvalidRequest(
            f"tools: {text!r} has a control character in it, or half of a surrogate pair; leave it out", param="tools"
        )
    return json.dumps(text, ensure_ascii=False)


def is_quotable(text: str) -> bool:
    """Whether `quoted` can write it."""
    return _UNQUOTABLE.search(text) is None
