"""A string that a call has as it is, without quotes, as the terminal of a grammar that matches it.

Knows what JSON schema says of strings. Refuses to know where in a call it stands.
"""

from collections.abc import Mapping
from typing import Any

import llguidance

from glm_cluster.errors import InvalidRequest
from glm_cluster.text.grammar.limits import check_regex

_KEPT = {"type", "minLength", "maxLength", "pattern"}
_SAY_NOTHING = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
_MOST_COUNTED = 4096  # characters; counting on takes a state for each
_ASCII = "d"  # `\d` is 0-9 to whoever reads the answer


def listed_strings(schema: object) -> list[Any]:
    """The strings that a schema lists; none if it lists none."""
    if not isinstance(schema, Mapping):
        return []
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def raw_string(schema: object, closing: str, *, strict: bool) -> str:
    """The terminal of a schema's strings but for those with `closing` in them, which would end there.

    `strict`: all that the schema says, or InvalidRequest.
    """
    said = schema if isinstance(schema, Mapping) else {}
    if strict and (unkept := sorted(said.keys() - _KEPT - _SAY_NOTHING)):
        raise InvalidRequest(
            f"tools: strict: {unkept[0]!r} of a string cannot be kept in calls as this model writes them; leave it out",
            param="tools",
        )
    tag = closing.replace("/", r"\/")
    all_of = [_length(said), f"~/(?s:.*){tag}(?s:.*)/"]
    if strict and isinstance(pattern := said.get("pattern"), str):
        all_of.append(_pattern(pattern))
    return " & ".join(all_of)


def _length(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    bounds = [one if isinstance(one, int) and 0 <= one <= _MOST_COUNTED else None for one in (low, high)]
    least, most = bounds[0] or 0, "" if bounds[1] is None else bounds[1]
    return f"/(?s:.{{{least},{most}}})/" if least or most != "" else "/(?s:.*)/"


def _pattern(pattern: str) -> str:
    """A string that the pattern is found in. What it looks for at an end stands at an end here in all alternatives."""
    check_regex(pattern)
    starts, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[starts : len(pattern) - ends]
    regex = f"{'' if starts else '(?s:.*)'}(?:{inner}){'' if ends else '(?s:.*)'}"
    return f"/{llguidance.regex_to_lark(regex, _ASCII)}/"
