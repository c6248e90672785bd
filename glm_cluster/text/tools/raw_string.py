"""A string that a call has as it is, without quotes, as the terminal of a grammar that matches it.

Knows what JSON schema says of strings. Refuses to know where in a call it stands.
"""

from collections.abc import Mapping
from typing import Any

import llguidance

from glm_cluster.errors import InvalidRequest
from glm_cluster.text.grammar.limits import check_regex
from glm_cluster.text.grammar.schema import ADVICE
from glm_cluster.text.grammar.scrutiny import grammar_fault

MOST_COUNTED = 4096  # characters; counting on takes a state for each
_ASCII = "d"  # `\d` is 0-9 to whoever reads the answer


def listed_strings(schema: object) -> list[Any]:
    """The strings that a schema lists; none if it lists none."""
    if not isinstance(schema, Mapping):
        return []
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def raw_string(schema: object, closing: str, *, strict: bool) -> str:
    """The terminal of a schema's strings but for those with `closing` in them, which would end there.

    `strict`: as the pattern says too. A length that cannot be counted is none, nor is one below another, if not strict.
    """
    said = schema if isinstance(schema, Mapping) else {}
    tag = closing.replace("/", r"\/")
    all_of = [_length(said, strict=strict), f"~/(?s:.*){tag}(?s:.*)/"]
    if strict and isinstance(pattern := said.get("pattern"), str):
        all_of.append(_pattern(pattern))
    return " & ".join(all_of)


def is_length(value: object) -> bool:
    """Whether it is a length that can be counted to."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_COUNTED


def _length(schema: Mapping[str, Any], *, strict: bool) -> str:
    low: Any = schema.get("minLength")
    high: Any = schema.get("maxLength")
    least = low if is_length(low) else 0
    most = high if is_length(high) and (strict or high >= least) else ""
    return f"/(?s:.{{{least},{most}}})/" if least or most != "" else "/(?s:.*)/"


def _pattern(pattern: str) -> str:
    """A string that the pattern is found in. What it looks for at an end stands at an end here in all alternatives."""
    try:
        check_regex(pattern)
    except InvalidRequest as error:
        raise InvalidRequest(f"tools: {error.message}", param="tools") from error
    starts, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[starts : len(pattern) - ends]
    regex = f"{'' if starts else '(?s:.*)'}(?:{inner}){'' if ends else '(?s:.*)'}"
    terminal = f"/{llguidance.regex_to_lark(regex, _ASCII)}/"
    if why := grammar_fault({"lark_grammar": f"start: {terminal}\n"}):
        raise InvalidRequest(f"tools: strict: the pattern {pattern!r} cannot be kept ({why}); {ADVICE}", param="tools")
    return terminal
