"""Where schemas stand within a JSON schema.

Knows which keywords hold schemas, and which hold values that only look like them. Refuses to know what any asks for.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

_LITERAL = {"const", "enum", "default", "examples", "example"}  # keywords whose values are no schemas
_BY_NAME = {  # names there are no keywords
    *("properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions"),
}


def schemas(value: object) -> Iterator[Mapping[str, Any]]:
    """A schema and all within it, also behind keywords that nobody knows: a reference may lead there."""
    if isinstance(value, list):
        for one in value:
            yield from schemas(one)
    elif isinstance(value, Mapping):
        yield value
        for keyword, within in value.items():
            if keyword in _BY_NAME and isinstance(within, Mapping):
                yield from schemas(list(within.values()))
            elif keyword not in _LITERAL:
                yield from schemas(within)


def rewritten(value: Any, rewrite: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Any:
    """A copy in which each of `schemas` is what `rewrite` makes of it, the outer before those within it."""
    if isinstance(value, list):
        return [rewritten(one, rewrite) for one in value]
    if not isinstance(value, Mapping):
        return value
    return {keyword: _within(keyword, one, rewrite) for keyword, one in rewrite(value).items()}


def _within(keyword: str, value: Any, rewrite: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Any:
    if keyword in _BY_NAME and isinstance(value, Mapping):
        return {name: rewritten(one, rewrite) for name, one in value.items()}
    return value if keyword in _LITERAL else rewritten(value, rewrite)
