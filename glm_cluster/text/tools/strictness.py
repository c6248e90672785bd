"""What calls between tags can be held to of a strict tool's schema; the rest is refused, by its keyword.

Knows which keywords ask for something. Refuses to know how a call is written.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

from glm_cluster.errors import InvalidRequest
from glm_cluster.text.tools.arguments import referred
from glm_cluster.text.tools.raw_string import MOST_COUNTED, is_length
from glm_cluster.text.tools.tool import Tool

_SAY_NOTHING = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$schema", "$id", "$comment", "$defs", "definitions"),
}
_OF_OBJECTS = {"type", "properties", "required", "additionalProperties"}
_BOUNDS = ("minLength", "maxLength")
_LISTS = ("const", "enum")
_OF_STRINGS = {"type", "pattern", *_BOUNDS, *_LISTS}


def check_arguments(schema: Mapping[str, Any], tool: Tool) -> None:
    """Refuse what the object of all arguments is asked for beyond its properties."""
    whose = f"the arguments of {tool.name!r}"
    _check_keywords(schema, _OF_OBJECTS, whose)
    if not isinstance(schema.get("additionalProperties", False), bool):
        _refuse("additionalProperties", whose, "make it false")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(required, list):
        _refuse("required", whose, "make it a list of properties")
    if any(name not in properties for name in required if isinstance(name, str)):
        _refuse("required", whose, "add each name that it lists to properties, or leave the name out")
    for name, one in properties.items():
        if not isinstance(one, Mapping) and one is not True:
            _refuse("properties", whose, f"make the schema of {name!r} an object")


def strict_string(schema: object, root: object, tool: Tool, name: str, closing: str) -> Mapping[str, Any]:
    """A string's schema, references followed, whose keywords can all be kept, `enum` the only list; or InvalidRequest.

    `closing`: what no string can have in it.
    """
    whose = f"the string {name!r} of {tool.name!r}"
    while isinstance(schema, Mapping) and isinstance(reference := schema.get("$ref"), str):
        _check_keywords(schema, {"$ref"}, whose, "beside '$ref'")
        schema = referred(reference, root)
    said = schema if isinstance(schema, Mapping) else {}
    _check_keywords(said, _OF_STRINGS, whose)
    for bound in _BOUNDS:
        if bound in said and not is_length(said[bound]):
            _refuse(bound, whose, f"make it a whole number up to {MOST_COUNTED}")
    is_list = not said.keys().isdisjoint(_LISTS)
    if "pattern" in said and (is_list or not isinstance(said["pattern"], str)):
        _refuse("pattern", whose, "leave it out", "beside listed strings" if is_list else "")
    return _narrowed(said, whose, closing) if is_list else said


def _narrowed(said: Mapping[str, Any], whose: str, closing: str) -> Mapping[str, Any]:
    """The strings that both lists have, and that the rest allows."""
    lists = [[said["const"]]] if "const" in said else []
    if "enum" in said:
        lists.append(said["enum"] if isinstance(said["enum"], list) else [])
    least, most = said.get("minLength", 0), said.get("maxLength")
    values = [
        value
        for value in lists[0]
        if isinstance(value, str) and all(value in one for one in lists[1:])
        if least <= len(value) and (most is None or len(value) <= most) and closing not in value
    ]
    if not values:
        _refuse("const" if "const" in said else "enum", whose, "list a string that the rest of the schema allows")
    return {"enum": values}


def _check_keywords(schema: Mapping[str, Any], kept: set[str], whose: str, where: str = "") -> None:
    if unkept := sorted(schema.keys() - kept - _SAY_NOTHING):
        _refuse(unkept[0], whose, "leave it out", where)


def _refuse(keyword: str, whose: str, advice: str, where: str = "") -> NoReturn:
    place = f"{where} in {whose}" if where else f"of {whose}"
    raise InvalidRequest(
        f"tools: strict: {keyword!r} {place} cannot be kept in calls as this model writes them; {advice}, "
        "or send strict: false",
        param="tools",
    )
