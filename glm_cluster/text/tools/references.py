"""A part of a schema as a document of its own, in which every reference still means what it meant.

Knows where schemas stand within a schema. Refuses to know what a reference leads to.
"""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

_DEFINITIONS = ("$defs", "definitions")  # that a document of each part has at the same place
_NO_SCHEMAS = {"const", "enum", "default", "examples"}
_BY_NAME = {"properties", "patternProperties", "dependentSchemas", *_DEFINITIONS}  # names there are no keywords


class Parts:
    """Writes parts of `root`. A part that refers to something has all definitions with it, others have none.

    What a part refers to outside the definitions stands in a copy of the root, which is one more of them.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        shared = {key: root[key] for key in _DEFINITIONS if key in root}
        self._place: str | None = None
        if any(_new_place(reference, "") != reference for reference in _references(root)):
            definitions = shared.get("$defs")
            shared["$defs"] = dict(definitions) if isinstance(definitions, Mapping) else {}
            name = next(name for number in count() if (name := f"root_{number}") not in shared["$defs"])
            shared["$defs"][name] = {
                key: value for key, value in root.items() if key not in (*_DEFINITIONS, "$id", "$schema")
            }
            self._place = f"#/$defs/{name}"
        self._shared = self._moved(shared)

    def document(self, part: object) -> dict[str, Any]:
        """The part alone; one that is no object says nothing."""
        if not isinstance(part, Mapping):
            return {}
        if not any(True for _ in _references(part)):
            return dict(part)
        return {**self._moved(part), **self._shared}

    def _moved(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        return dict(schema) if self._place is None else _moved(schema, self._place)


def _references(schema: object) -> Iterator[str]:
    """Those of a schema and of the schemas within it."""
    if isinstance(schema, list):
        for one in schema:
            yield from _references(one)
    elif isinstance(schema, Mapping):
        if isinstance(reference := schema.get("$ref"), str):
            yield reference
        for key, value in schema.items():
            if key in _BY_NAME and isinstance(value, Mapping):
                yield from _references(list(value.values()))
            elif key not in _NO_SCHEMAS:
                yield from _references(value)


def _moved(schema: Any, place: str) -> Any:
    """The same where the root stands at `place`."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str):
            moved[key] = _new_place(value, place)
        elif key in _BY_NAME and isinstance(value, Mapping):
            moved[key] = {name: _moved(one, place) for name, one in value.items()}
        else:
            moved[key] = value if key in _NO_SCHEMAS else _moved(value, place)
    return moved


def _new_place(reference: str, place: str) -> str:
    """Definitions stay where they are, and what is not in this schema stays unknown."""
    within = reference == "#" or reference.startswith("#/")
    kept = reference.startswith(tuple(f"#/{key}/" for key in _DEFINITIONS))
    return place + reference[1:] if within and not kept else reference
