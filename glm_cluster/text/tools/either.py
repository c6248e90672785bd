"""An output that is calls, or else a text as a whole: how it begins decides.

So what stands in the text, which has a form to keep, is never taken for a call. Knows how calls begin. Refuses to know
what makes a model keep to one of the two.
"""

from collections.abc import Collection
from typing import Protocol

from glm_cluster.text.tools.pieces import Content, Piece


class CallReader(Protocol):
    """What finds calls in a text."""

    def push(self, text: str) -> list[Piece]:
        """Return the pieces that `text` completes."""

    def finish(self) -> list[Piece]:
        """Return what was held back."""


class FormOrCalls:
    """Reads one output. `push` and `finish` return what is certain by then."""

    def __init__(self, calls: CallReader, beginnings: Collection[str]) -> None:
        self._calls = calls
        self._beginnings = beginnings
        self._head: str | None = ""  # None: it is decided
        self._is_text = False

    def push(self, text: str) -> list[Piece]:
        """Return the pieces that `text` completes."""
        if self._head is not None:
            self._head += text
            if not self._is_decided(self._head):
                return []
            text, self._head = self._head, None
        return self._read(text)

    def finish(self) -> list[Piece]:
        """Return what was held back."""
        if self._head is not None:
            return [Content(self._head)] if self._head else []
        return [] if self._is_text else self._calls.finish()

    def _is_decided(self, head: str) -> bool:
        if head.startswith(tuple(self._beginnings)):
            return True
        self._is_text = not any(beginning.startswith(head) for beginning in self._beginnings)
        return self._is_text

    def _read(self, text: str) -> list[Piece]:
        if not self._is_text:
            return self._calls.push(text)
        return [Content(text)] if text else []
