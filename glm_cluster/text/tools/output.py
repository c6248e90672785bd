"""A model's output read: reasoning, text and tool calls apart, while it comes.

Puts the reader of reasoning before the reader of calls. Refuses to know tokens: what it reads is the text with the tags
and control tokens in it that it looks for (`SHOWN`).
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

from glm_cluster.text.tools import glm4, glm45, reasoning
from glm_cluster.text.tools.either import CallReader, FormOrCalls
from glm_cluster.text.tools.glm4 import Glm4Calls
from glm_cluster.text.tools.glm45 import TaggedCalls
from glm_cluster.text.tools.pieces import Content, Parsed, Piece, Reasoning, joined
from glm_cluster.text.tools.reasoning import ReasoningSplitter
from glm_cluster.text.tools.tool import Tool

Family: TypeAlias = Literal["glm4", "glm45", "glm47"]
"""How a model writes calls; glm47 is glm45 without line breaks."""

SHOWN: Mapping[Family, tuple[str, ...]] = MappingProxyType(
    {"glm4": (glm4.TURN,), "glm45": glm45.TAGS, "glm47": glm45.TAGS}
)
REASONING_SHOWN = (reasoning.OPEN, reasoning.CLOSE)


class OutputReader:
    """Reads one output. What `push` and `finish` return does not depend on how the output is cut for `push`."""

    def __init__(
        self,
        *,
        calls: CallReader | None = None,
        thinks: ReasoningSplitter | None = None,
        skip_newline: bool = False,
    ) -> None:
        """`skip_newline`: leave one line break out at the beginning of the text for the reader."""
        self._calls = calls
        self._thinks = thinks
        self._skip_newline = skip_newline

    def push(self, text: str) -> list[Piece]:
        """Return the pieces that `text` completes."""
        if self._thinks is None:
            return self._answer(text)
        thought, text = self._thinks.push(text)
        return [*_reasoning(thought), *self._answer(text)]

    def finish(self) -> list[Piece]:
        """Return what was held back."""
        thought, text = ("", "") if self._thinks is None else self._thinks.finish()
        pieces = [*_reasoning(thought), *self._answer(text)]
        return pieces if self._calls is None else [*pieces, *self._opened(self._calls.finish())]

    def _answer(self, text: str) -> list[Piece]:
        if not text:
            return []
        return self._opened([Content(text)] if self._calls is None else self._calls.push(text))

    def _opened(self, pieces: list[Piece]) -> list[Piece]:
        """`pieces` without the line break that a model writes where it could have named a tool."""
        if not self._skip_newline or not pieces:
            return pieces
        self._skip_newline = False
        if isinstance(first := pieces[0], Content):
            rest = first.text.removeprefix("\n")
            return [*([Content(rest)] if rest else []), *pieces[1:]]
        return pieces


def call_reader(family: Family, tools: Iterable[Tool], *, certain: bool = False, at_once: bool = False) -> CallReader:
    """The reader of a family's calls.

    `certain`: a grammar makes a call of whatever begins as one. `at_once`: calls come first, or the output is all text.
    """
    known = tuple(tools)
    if family == "glm4":
        reader: CallReader = Glm4Calls(known, certain=certain)
        beginnings = [f"{tool.name}\n" if tool.built_in else f"{tool.name}\n{{" for tool in known]
    else:
        reader, beginnings = TaggedCalls(known, certain=certain), [glm45.OPEN]
    return FormOrCalls(reader, beginnings) if at_once else reader


def parse(reader: OutputReader, text: str) -> Parsed:
    """Read a whole output at once."""
    return joined([*reader.push(text), *reader.finish()])


def _reasoning(text: str) -> list[Piece]:
    return [Reasoning(text)] if text else []
