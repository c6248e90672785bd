"""A JSON schema without what asks for nothing, in one spelling: what generators of schemas leave behind.

Knows which values of which keywords are no constraint. Refuses to leave out anything that an answer could break.
"""

import re
from collections.abc import Mapping
from typing import Any

from glm_cluster.text.grammar.places import rewritten

FORMATS = frozenset({"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"})
"""Those that the library enforces. Any other is an annotation: JSON schema asks nothing of whoever does not know it."""

_DIALECT = re.compile(r"https?://(json-schema\.org/(?:schema|(draft-0\d|draft/20\d\d-\d\d)/schema))#?")
_NULLABLE = {"const", "default"}  # keywords of which null is a value; elsewhere it is written for what is absent
_NO_CONSTRAINT: Mapping[str, tuple[object, ...]] = {
    "uniqueItems": (False,),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
}
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_SAID_OF_NAMES = {"type", "title", "description", "$comment", "$schema"}  # true of any name, if the type is string's


def cleaned(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What the same values are valid under, its dialects named as the library names them."""
    clean: dict[str, Any] = rewritten(schema, _cleaned)
    return clean


def _cleaned(schema: Mapping[str, Any]) -> dict[str, Any]:
    kept = {keyword: value for keyword, value in schema.items() if not _asks_nothing(keyword, value)}
    for keyword in _COUNTS:
        if isinstance(count := kept.get(keyword), float) and count.is_integer():
            kept[keyword] = int(count)
    if isinstance(name := kept.get("$schema"), str) and (known := _DIALECT.fullmatch(name)):
        _spell_dialect(kept, known)
    return kept


def _asks_nothing(keyword: str, value: object) -> bool:
    if value is None:
        return keyword not in _NULLABLE
    if keyword == "format":
        return isinstance(value, str) and value not in FORMATS
    if keyword == "propertyNames":
        return value is True or _is_any_name(value)
    return value in _NO_CONSTRAINT.get(keyword, ())


def _is_any_name(schema: object) -> bool:
    if not isinstance(schema, Mapping):
        return False
    return schema.keys() <= _SAID_OF_NAMES and schema.get("type") in (None, "string")


def _spell_dialect(schema: dict[str, Any], known: "re.Match[str]") -> None:
    """With the scheme of its own that each has: many write the other. No number means the latest, the library's own."""
    if known[2] is None:
        del schema["$schema"]
    else:
        schema["$schema"] = f"{'http' if known[2].startswith('draft-') else 'https'}://{known[1]}"
