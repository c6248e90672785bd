"""The arguments of a call between tags as JSON, piece by piece as they come.

Knows which may be told before they have ended. Refuses to know tags.
"""

from glm_cluster.text.tools.arguments import Arguments, as_json


class ArgumentStream:
    """Writes one object. All that its methods return, put together, is the object."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._num_keys = 0
        self._is_open = False  # a string has begun

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
        return self._key(key) + as_json(self._arguments.value(key, text))

    def is_string(self, key: str) -> bool:
        """Whether more and more of an argument can be told."""
        return self._arguments.is_string(key)

    def end(self) -> str:
        """End the object."""
        return "}" if self._num_keys else "{}"

    def _key(self, key: str) -> str:
        self._num_keys += 1
        return f"{'{' if self._num_keys == 1 else ', '}{as_json(key)}: "


def escaped(text: str) -> str:
    """`text` as the inside of a JSON string."""
    return as_json(text)[1:-1]
