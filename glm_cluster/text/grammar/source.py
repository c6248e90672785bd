"""A grammar in the words of the library that follows it.

Knows the library's formats. Refuses to know tokens, and to guess: what the library would leave out is refused.

JSON is written one way, as Python writes it (`{"a": 1, "b": [2]}`): a model that may choose its white space may also
never stop writing it.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import llguidance

from glm_cluster.errors import InvalidRequest
from glm_cluster.records import Grammar
from glm_cluster.text.grammar import limits

_Part: TypeAlias = dict[str, Any]
"""One grammar of a list, in the library's form."""

_LINE_BREAK = r'"\n" '
_LAYOUT = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "coerce_one_of": False,  # `anyOf` would let through what `oneOf` does not
    "lenient": False,  # a keyword that cannot be enforced is refused
}
_OPTIONS = "x-guidance"  # the library's own keyword, by which a schema would change the layout
_ASCII = "d"  # `\d` is 0-9 to whoever reads the answer; `\w` has letters of every script
_DIALECT = re.compile(r"https?://(json-schema\.org/(?:schema|(draft-0\d|draft/20\d\d-\d\d)/schema))#?")
_LITERAL = ("const", "enum", "default", "examples")  # keywords whose values are no schemas


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


def _json(source: str) -> _Part:
    if source:
        raise InvalidRequest("any JSON object takes no source; give a JSON schema for certain ones")
    return _of_schema({"type": "object"})


def _schema(source: str) -> _Part:
    schema = limits.read_json(source)
    if not isinstance(schema, dict):
        raise InvalidRequest("a JSON schema is an object")
    for one in _schemas(schema):
        _check_keywords(one)
    return _of_schema(schema)


def _of_schema(schema: dict[str, Any]) -> _Part:
    return {"json_schema": {**schema, _OPTIONS: _LAYOUT}}


def _check_keywords(schema: dict[str, Any]) -> None:
    if _OPTIONS in schema:
        raise InvalidRequest(f"the keyword {_OPTIONS!r} is not supported; leave it out")
    if isinstance(schema.get("required"), bool) and isinstance(schema.get("type"), str | list):
        raise InvalidRequest("required is a list of names, beside the properties; write it so, or leave it out")
    if isinstance(pattern := schema.get("pattern"), str):
        limits.check_regex(pattern)
    if isinstance(patterns := schema.get("patternProperties"), dict):
        for pattern in patterns:
            limits.check_regex(pattern)
    if isinstance(name := schema.get("$schema"), str) and (known := _DIALECT.fullmatch(name)):
        _spell_dialect(schema, known)
    if schema.get("uniqueItems") is False:
        del schema["uniqueItems"]  # it asks for nothing, and the library knows no uniqueItems


def _spell_dialect(schema: dict[str, Any], known: "re.Match[str]") -> None:
    """With the scheme of its own that each has: many write the other. No number means the latest, the library's own."""
    if known[2] == "draft-03":
        raise InvalidRequest("JSON schemas of draft 3 are not supported; write it in a later draft")
    if known[2] is None:
        del schema["$schema"]
    else:
        schema["$schema"] = f"{'http' if known[2].startswith('draft-') else 'https'}://{known[1]}"


def _schemas(value: Any) -> Iterator[dict[str, Any]]:
    """Every object where a schema may stand, names of properties taken for keywords at worst."""
    if isinstance(value, dict):
        yield value
        for key, one in list(value.items()):
            if key not in _LITERAL:
                yield from _schemas(one)
    elif isinstance(value, list):
        for one in value:
            yield from _schemas(one)


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
    return {"lark_grammar": source}


_READERS = {"json": _json, "json_schema": _schema, "regex": _regex, "choice": _choice, "lark": _lark}
