"""Tool calls as GLM-4 writes them: the tool's name, a line break, the arguments.

One output may have several segments with `<|assistant|>` between them; inside a string of arguments it is text. A
segment is a call of a function if its first line is the name of one and all the rest is a JSON object, and a call of
one of All Tools if its first line is its name. Anything else is text. So a function's arguments are known for a call
only at the end of their segment, and come in one piece, unless the caller knows better (`certain`: a grammar makes a
call of whatever begins as one).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from glm_cluster.text.tools.argument_stream import escaped as _inside_string
from glm_cluster.text.tools.arguments import is_json_object
from glm_cluster.text.tools.json_strings import JsonStrings
from glm_cluster.text.tools.pieces import ArgumentsDelta, CallEnd, CallStart, Content, Piece, whole_call
from glm_cluster.text.tools.tags import without_begun
from glm_cluster.text.tools.tool import Tool

TURN = "<|assistant|>"
_SPACE = 16  # white space around a name


@dataclass(frozen=True, slots=True)
class _Head:
    """A segment of which it is not clear yet what it is."""

    text: str = ""


@dataclass(frozen=True, slots=True)
class _Text:
    """A segment for the reader."""


@dataclass(frozen=True, slots=True)
class _Function:
    """A segment that calls a function if all of it turns out to be JSON."""

    name: str
    parts: list[str] = field(default_factory=list)  # of the whole segment
    strings: JsonStrings = field(default_factory=JsonStrings)


@dataclass(frozen=True, slots=True)
class _Streamed:
    """A segment that is a call for certain."""

    index: int
    escaped: bool  # its body is the one string of a JSON object
    strings: JsonStrings = field(default_factory=JsonStrings)  # of a body that is JSON


_Segment: TypeAlias = _Head | _Text | _Function | _Streamed


class Glm4Calls:
    """Reads one output. `push` and `finish` return what is certain by then."""

    def __init__(self, tools: Collection[Tool], *, certain: bool = False) -> None:
        self._body_keys: Mapping[str, str | None] = {tool.name: tool.body_key for tool in tools}
        self._head_limit = max(map(len, self._body_keys), default=0) + _SPACE
        self._certain = certain
        self._pending = ""  # may be the beginning of TURN
        self._num_calls = 0
        self._segment: _Segment = _Head()

    def push(self, text: str) -> list[Piece]:
        """Return the pieces that `text` completes."""
        pieces: list[Piece] = []
        before, *others = (self._pending + text).split(TURN)
        for after in others:
            pieces += self._read(before)
            pieces += self._read(TURN) if self._is_in_string else self._close()
            before = after
        rest, self._pending = without_begun(before, TURN)
        return pieces + self._read(rest)

    def finish(self) -> list[Piece]:
        """Return what was held back."""
        pending, self._pending = self._pending, ""
        return self._read(pending) + self._close()

    @property
    def _is_in_string(self) -> bool:
        return isinstance(self._segment, _Function | _Streamed) and self._segment.strings.is_open

    def _read(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        if isinstance(self._segment, _Head):
            head = self._segment.text + text
            self._segment, text, pieces = self._judged(head)
        if not text:
            return pieces
        match self._segment:
            case _Text():
                pieces += _content(text)
            case _Function(parts=parts, strings=strings):
                parts.append(text)
                strings.push(text)
            case _Streamed(index=index, escaped=escaped, strings=strings):
                if not escaped:
                    strings.push(text)
                pieces.append(ArgumentsDelta(index, _inside_string(text) if escaped else text))
        return pieces

    def _judged(self, head: str) -> tuple[_Segment, str, list[Piece]]:
        """What a segment is that begins so, what of `head` it still has to read, and what to say at once."""
        line, line_break, _ = head[: self._head_limit].lstrip().partition("\n")
        name = line.strip()
        if not line_break:
            undecided = len(head) < self._head_limit and any(known.startswith(name) for known in self._body_keys)
            return (_Head(head), "", []) if undecided else (_Text(), head, [])
        if name in self._body_keys:
            return self._named(head, name, head.lstrip().partition("\n")[2])
        return _Text(), head, []

    def _named(self, head: str, name: str, body: str) -> tuple[_Segment, str, list[Piece]]:
        """The same, of a segment whose first line is the name of a tool."""
        if (key := self._body_keys[name]) is not None:
            # an answer that only begins with this word has the line break of answers before it
            return (_Text(), head, []) if head.startswith("\n") else self._started(name, f'{{"{key}": "', body)
        if not body:
            return _Head(head), "", []
        if not body.startswith("{"):
            return _Text(), head, []
        return self._started(name, "", body) if self._certain else (_Function(name), head, [])

    def _started(self, name: str, opening: str, body: str) -> tuple[_Segment, str, list[Piece]]:
        index, self._num_calls = self._num_calls, self._num_calls + 1
        pieces: list[Piece] = [CallStart(index, name)]
        if opening:
            pieces.append(ArgumentsDelta(index, opening))
        return _Streamed(index, escaped=bool(opening)), body, pieces

    def _close(self) -> list[Piece]:
        """End the segment."""
        segment, self._segment = self._segment, _Head()
        match segment:
            case _Head(text=text):
                return _content(text)
            case _Text():
                return []
            case _Function():
                return self._function(segment.name, "".join(segment.parts))
            case _Streamed(index=index, escaped=escaped):
                return [*([ArgumentsDelta(index, '"}')] if escaped else []), CallEnd(index)]

    def _function(self, name: str, segment: str) -> list[Piece]:
        arguments = segment.lstrip().partition("\n")[2].strip()
        if not is_json_object(arguments):
            return _content(segment)
        self._num_calls += 1
        return whole_call(self._num_calls - 1, name, arguments)


def _content(text: str) -> list[Piece]:
    return [Content(text)] if text else []
