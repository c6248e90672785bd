"""The arguments of a call between tags as JSON, piece by piece as they come.

Knows the schema that says how each is read. Refuses to know tags.
"""

import json

from glm_cluster.text.tools.arguments import argument, schema_of_property, types_of_schema


class ArgumentStream:
    """Writes one object. All that its methods return, put together, is the object."""

    def __init__(self, schema: object) -> None:
        self._schema = schema
        self._num_keys = 0
        self._is_open = False  # a string has begun

    def is_string(self, key: str) -> bool:
        """Whether an argument is read as it is, so that its beginning can be told before its end has come."""
        return types_of_schema(schema_of_property(key, self._schema), self._schema) == {"string"}

    def more(self, key: str, text: str) -> str:
        """Go on with a string, or begin it."""
        if not text:
            return ""
        opening = "" if self._is_open else f'{self._key(key)}"'
        self._is_open = True
        return opening + escaped(text)

    def last(self, key: str, text: str) -> str:
        """End an argument with its last text; all of it, if it has not begun."""
        if self._is_open:
            self._is_open = False
            return f'{escaped(text)}"'
        value = argument(text, schema_of_property(key, self._schema), self._schema)
        return self._key(key) + json.dumps(value, ensure_ascii=False)

    def end(self) -> str:
        """End the object."""
        return "}" if self._num_keys else "{}"

    def _key(self, key: str) -> str:
        self._num_keys += 1
        return f"{'{' if self._num_keys == 1 else ', '}{json.dumps(key, ensure_ascii=False)}: "


def escaped(text: str) -> str:
    """`text` as the inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
