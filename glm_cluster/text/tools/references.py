"""A part of a schema as a document of its own, in which every reference still means what it meant.

Knows how references are written. Refuses to know what one leads to.
"""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from glm_cluster.text.grammar.places import rewritten, schemas

_DEFINITIONS = ("$defs", "definitions")  # that a document of each part has at the same place


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
    return (reference for one in schemas(schema) if isinstance(reference := one.get("$ref"), str))


def _moved(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The same where the root stands at `place`."""

    def moved(one: Mapping[str, Any]) -> Mapping[str, Any]:
        reference = one.get("$ref")
        return {**one, "$ref": _new_place(reference, place)} if isinstance(reference, str) else one

    made: dict[str, Any] = rewritten(schema, moved)
    return made


def _new_place(reference: str, place: str) -> str:
    """Definitions stay where they are, and what is not in this schema stays unknown."""
    within = reference == "#" or reference.startswith("#/")
    kept = reference.startswith(tuple(f"#/{key}/" for key in _DEFINITIONS))
    return place + reference[1:] if within and not kept else reference
