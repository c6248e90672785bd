"""How many patterns one string may have to match at once, as several places of a schema say something of it.

Knows which keywords speak of the same value. Refuses to know what patterns say, or whether a string could match all.
"""

from collections.abc import Mapping
from typing import Any

from glm_cluster.text.grammar.places import schemas

_ONE_OF = ("anyOf", "oneOf")
_WITHIN = ("items", "prefixItems", "additionalItems", "additionalProperties", "contains")
_DEEPEST = 128  # schemas within one another or behind references; deeper ones count as if all patterns met there


def most_meeting(root: Mapping[str, Any]) -> int:
    """Not fewer than meet at one string; more at times, as no names are compared."""
    return _Meetings(root).of(root, 0)


class _Meetings:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._num_patterns = sum(isinstance(one.get("pattern"), str) for one in schemas(root))
        self._behind: dict[str, int] = {}

    def of(self, schema: object, depth: int) -> int:
        if not isinstance(schema, list | Mapping) or not self._num_patterns:
            return 0
        if depth > _DEEPEST:
            return self._num_patterns
        depth += 1
        if isinstance(schema, list):
            return max((self.of(one, depth) for one in schema), default=0)
        beside = sum(self.of(schema.get(keyword), depth) for keyword in _ONE_OF)
        if isinstance(all_of := schema.get("allOf"), list):
            beside += sum(self.of(one, depth) for one in all_of)
        if isinstance(reference := schema.get("$ref"), str):
            beside += self._of_reference(reference, depth)
        own = max(isinstance(schema.get("pattern"), str), *(self.of(schema.get(key), depth) for key in _WITHIN))
        named = sum(self._of_any(schema.get(key), depth) for key in ("properties", "patternProperties"))
        return beside + max(own, named)

    def _of_any(self, by_name: object, depth: int) -> int:
        return self.of(list(by_name.values()), depth) if isinstance(by_name, Mapping) else 0

    def _of_reference(self, reference: str, depth: int) -> int:
        """All there are, where it is not plain what it leads to; a ring is gone through once."""
        if reference not in self._behind:
            self._behind[reference] = 0
            target = _target(reference, self._root)
            self._behind[reference] = self._num_patterns if target is None else self.of(target, depth)
        return self._behind[reference]


def _target(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    start, *steps = reference.split("/")
    place: Any = root if start == "#" else None
    for step in steps:
        place = place.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(place, Mapping) else None
    return place if isinstance(place, Mapping) else None
