"""Reasoning and answer apart: `<think>...</think>` at the beginning of what a model writes.

Knows the two tags. Refuses to know how models are told to think: whether the prompt has opened the tag already is the
caller's to say.
"""

from typing import Literal, TypeAlias

from glm_cluster.text.tools.tags import TrailingSpace, without_begun

OPEN, CLOSE = "<think>", "</think>"
_MOST_SPACE = 64  # characters before the tag

State: TypeAlias = Literal["before", "inside", "after"]


def state_after(prompt: str) -> State:
    """Where a model stands that goes on from a prompt ending so."""
    end = prompt.rstrip()
    if end.endswith(OPEN):
        return "inside"
    return "after" if end.endswith(CLOSE) else "before"


class ReasoningSplitter:
    """Cuts one output. White space around the reasoning belongs to neither side.

    Reasoning that is never closed stays reasoning. A `<think>` anywhere but at the beginning is plain text.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._pending = ""
        self._space = TrailingSpace()
        self._bare = True  # no reasoning yet but white space
        self._answer_bare = state != "before"  # nothing came after the tag but white space

    def push(self, text: str) -> tuple[str, str]:
        """Return what more there is of the reasoning and of the answer."""
        if self._state == "before":
            text = self._look_for_opening(text)
        reasoning = ""
        if self._state == "inside":
            reasoning, text = self._reasoning(self._pending + text)
        if self._answer_bare:
            text = text.lstrip()
            self._answer_bare = not text
        return reasoning, text

    def finish(self) -> tuple[str, str]:
        """Return what was held back."""
        pending, self._pending = self._pending, ""
        if self._state != "inside":
            return "", pending
        return (self._space.push(self._trimmed(pending)), "") if pending.strip() else ("", "")

    def _look_for_opening(self, text: str) -> str:
        """Return what there is to pass on: nothing while the beginning may still be the tag."""
        text = self._pending + text
        head = text.lstrip()
        size = len(text) - len(head)
        if size <= _MOST_SPACE and head.startswith(OPEN):
            self._state, self._pending, self._answer_bare = "inside", "", True
            return head[len(OPEN) :]
        if size <= _MOST_SPACE and OPEN.startswith(head):
            self._pending = text
            return ""
        self._state, self._pending = "after", ""
        return text

    def _reasoning(self, text: str) -> tuple[str, str]:
        reasoning, closing, answer = text.partition(CLOSE)
        if closing:
            self._state, self._pending = "after", ""
            return self._space.push(self._trimmed(reasoning)), answer
        reasoning, self._pending = without_begun(text, CLOSE)
        return self._space.push(self._trimmed(reasoning)), ""

    def _trimmed(self, text: str) -> str:
        if self._bare:
            text = text.lstrip()
            self._bare = not text
        return text
