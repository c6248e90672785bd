"""Whether a JSON text that comes in pieces is inside a string. Refuses to know what else is JSON."""

import re

_TOLD = re.compile(r'\\(?s:.)?|"')


class JsonStrings:
    """Follows one text."""

    def __init__(self) -> None:
        self.is_open = False
        self._is_escaped = False  # by the last character

    def push(self, text: str) -> None:
        """Read on."""
        if self._is_escaped and text:
            text, self._is_escaped = text[1:], False
        for found in _TOLD.findall(text):
            if found == '"':
                self.is_open = not self.is_open
            self._is_escaped = found == "\\"
