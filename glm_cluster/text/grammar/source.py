"""A grammar in the words of the library that follows it.

Knows the library's formats. Refuses to know tokens, and how much of a schema the library can keep.
"""

import json
import re
from contextlib import suppress
from typing import Any, TypeAlias

import llguidance

from glm_cluster.errors import InvalidRequest
from glm_cluster.records import Grammar
from glm_cluster.text.grammar import limits
from glm_cluster.text.grammar.schema import ADVICE, loosely, strictly
from glm_cluster.text.grammar.scrutiny import fault

_Part: TypeAlias = dict[str, Any]
"""One grammar of a list, in the library's form."""

_JSON_IN_LARK = re.compile(r"%json[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_LINE_BREAK = r'"\n" '
_ASCII = "d"  # `\d` is 0-9 to whoever reads the answer; `\w` has letters of every script


def library_source(grammar: Grammar) -> str:
    """What the library compiles; InvalidRequest, without a field's name, if the source is none of its kind."""
    body = _READERS[grammar.kind](grammar.source)
    if not grammar.opens_line and not grammar.instead:
        return json.dumps({"grammars": [body]})
    start = f"start: {_LINE_BREAK if grammar.opens_line else ''}@body"
    if not grammar.instead:
        return json.dumps({"grammars": [{"lark_grammar": start}, {"name": "body", **body}]})
    other = {"name": "instead", **_lark(grammar.instead)}
    return json.dumps({"grammars": [{"lark_grammar": f"{start} | @instead"}, {"name": "body", **body}, other]})


def advice(grammar: Grammar) -> str:
    """What may help where the library refuses a grammar: a schema of which something can be kept may be sent so."""
    if grammar.kind != "json_schema" or fault(loosely(_object(grammar.source))):
        return ""
    return f"; {ADVICE}"


def _json(source: str) -> _Part:
    if source:
        raise InvalidRequest("any JSON object takes no source; give a JSON schema for certain ones")
    return {"json_schema": strictly({"type": "object"})}


def _schema(source: str) -> _Part:
    return {"json_schema": strictly(_object(source))}


def _loose_schema(source: str) -> _Part:
    return {"json_schema": loosely(_object(source))}


def _object(source: str) -> dict[str, Any]:
    schema = limits.read_json(source)
    if not isinstance(schema, dict):
        raise InvalidRequest("a JSON schema is an object")
    return schema


def _regex(source: str) -> _Part:
    limits.check_regex(source)
    return {"lark_grammar": f"start: /{llguidance.regex_to_lark(source, _ASCII)}/\n"}


def _choice(source: str) -> _Part:
    choices = limits.read_json(source)
    if not isinstance(choices, list) or not choices or not all(isinstance(one, str) for one in choices):
        raise InvalidRequest("choices are a list of strings, at least one")
    if len(choices) > limits.CHOICES:
        raise InvalidRequest(f"there are more than {limits.CHOICES} choices; give fewer")
    literals = (json.dumps(one, ensure_ascii=False) for one in dict.fromkeys(choices))
    return {"lark_grammar": f"start: {' | '.join(literals)}\n"}


def _lark(source: str) -> _Part:
    limits.check_source(source)
    for found in _JSON_IN_LARK.finditer(source):
        with suppress(ValueError, RecursionError):  # by which the library refuses it too
            limits.check_patterns(_DECODER.raw_decode(source, found.end())[0])
    return {"lark_grammar": source}


_READERS = {
    "json": _json,
    "json_schema": _schema,
    "loose_schema": _loose_schema,
    "regex": _regex,
    "choice": _choice,
    "lark": _lark,
}
