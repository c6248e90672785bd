"""Tool calls as GLM-4.5, 4.6 and 4.7 write them: between tags, each argument between tags of its own.

`<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value>...</tool_call>`, with line breaks between (4.5, 4.6)
or without (4.7): one reader for both. A call is known when its last tag has come, and comes in one piece, unless the
caller knows better (`certain`: a grammar makes a call of whatever begins as one). One that is never closed, or
malformed, is text; of one that ends in an argument's key, only that argument is lost. As in other servers text after
the first call is left out, and so is white space before it.
"""

import re
from collections.abc import Collection
from typing import Literal, TypeAlias

from glm_cluster.text.tools.argument_stream import ArgumentStream
from glm_cluster.text.tools.arguments import Arguments, as_json
from glm_cluster.text.tools.pieces import ArgumentsDelta, CallEnd, CallStart, Content, Piece, whole_call
from glm_cluster.text.tools.tags import TrailingSpace, Until, without_begun
from glm_cluster.text.tools.tool import Tool

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_KEY, _KEY_END = "<arg_key>", "</arg_key>"
_VALUE, _VALUE_END = "<arg_value>", "</arg_value>"
TAGS = (OPEN, CLOSE, _KEY, _KEY_END, _VALUE, _VALUE_END)
_ENDS = {_KEY: (_KEY_END, CLOSE), _VALUE: (_VALUE_END,)}
_MOST_HEAD = 512  # characters of a name and white space around it
_NAME = re.compile(r"[^\s<>]{1,256}")

_Status: TypeAlias = Literal["open", "closed", "broken"]


class TaggedCalls:
    """Reads one output. `push` and `finish` return what is certain by then."""

    def __init__(self, tools: Collection[Tool], *, certain: bool = False) -> None:
        self._tools = {tool.name: Arguments(tool.schema) for tool in tools}
        self._certain = certain
        self._stream: ArgumentStream | None = None  # of the call that comes, once its name is known
        self._space = TrailingSpace()
        self._pending = ""  # may be the beginning of OPEN
        self._call: _TaggedCall | None = None
        self._num_calls = 0

    def push(self, text: str) -> list[Piece]:
        """Return the pieces that `text` completes."""
        pieces: list[Piece] = []
        while text:
            text = self._outside(text, pieces) if self._call is None else self._inside(self._call, text, pieces)
        return pieces

    def finish(self) -> list[Piece]:
        """Return what was held back."""
        if self._stream is not None:
            self._stream = None
            return [CallEnd(self._num_calls - 1)]
        unread = self._pending if self._call is None else OPEN + self._call.text
        self._pending, self._call = "", None
        return [] if self._num_calls else _content(self._space.push(unread) + self._space.release())

    def _outside(self, text: str, pieces: list[Piece]) -> str:
        """Read up to a call; return what comes after its tag."""
        before, opening, after = (self._pending + text).partition(OPEN)
        self._pending = ""
        if opening:
            self._call = _TaggedCall()
        else:
            before, self._pending = without_begun(before, OPEN)
        pieces += self._content(before)
        return after

    def _inside(self, call: "_TaggedCall", text: str, pieces: list[Piece]) -> str:
        """Read on in a call; return what comes after it."""
        rest = call.push(text)
        if self._certain and call.is_named:
            pieces += self._streamed(call)
        elif call.status == "closed":
            pieces += whole_call(self._num_calls, call.name, self._arguments(call))
            self._num_calls += 1
        elif call.status == "broken":
            pieces += self._content(OPEN + call.text)
        if call.status != "open":
            self._call = None
        return rest

    def _streamed(self, call: "_TaggedCall") -> list[Piece]:
        """What is new of a call that is one for certain."""
        pieces: list[Piece] = []
        if self._stream is None:
            self._stream = ArgumentStream(self._known(call.name))
            pieces.append(CallStart(self._num_calls, call.name))
            self._num_calls += 1
        index = self._num_calls - 1
        if text := call.taken(self._stream):
            pieces.append(ArgumentsDelta(index, text))
        if call.status != "open":
            self._stream = None
            pieces.append(CallEnd(index))
        return pieces

    def _arguments(self, call: "_TaggedCall") -> str:
        known = self._known(call.name)
        return as_json({key: known.value(key, text) for key, text in call.arguments})

    def _known(self, name: str) -> Arguments:
        return self._tools.get(name) or Arguments(None)

    def _content(self, text: str) -> list[Piece]:
        return [] if self._num_calls else _content(self._space.push(text))


class _TaggedCall:
    """One call after its opening tag. It breaks where something else stands than may come next."""

    def __init__(self) -> None:
        self.status: _Status = "open"
        self.name = ""
        self.arguments: list[tuple[str, str]] = []
        self._read: list[str] = []
        self._pending = ""  # of a name or a tag
        self._until: Until | None = None  # inside a key or a value
        self._next: tuple[str, ...] = ()  # the tags that may come; none: the name comes
        self._key = ""

    @property
    def text(self) -> str:
        """All that was read."""
        return "".join(self._read)

    @property
    def is_named(self) -> bool:
        """Whether all of the name has come."""
        return bool(self._next)

    def taken(self, stream: ArgumentStream) -> str:
        """What is new of the arguments, as a stream writes it; they are kept no longer."""
        written = [stream.last(key, text) for key, text in self.arguments]
        self.arguments.clear()
        if self._until is not None and self._next == (_VALUE,) and stream.is_string(self._key):
            written.append(stream.more(self._key, self._until.take()))
        if self.status == "closed":
            written.append(stream.end())
        return "".join(written)

    def push(self, text: str) -> str:
        """Read on; return what comes after the call's end, or from where it broke."""
        self._read.append(text)
        while text and self.status == "open":
            if self._until is not None:
                text = self._inside_tags(self._until, text)
            else:
                text = self._tag(self._pending + text) if self._next else self._head(self._pending + text)
        if self.status == "broken":
            read = self.text
            self._read = [read[: len(read) - len(text)]]
        return text

    def _head(self, text: str) -> str:
        """Read the name, up to the first tag."""
        end = text.find("<", 0, _MOST_HEAD)
        self._pending = ""
        if end < 0 and len(text) < _MOST_HEAD:
            self._pending = text
            return ""
        self.name = text[: max(end, 0)].strip()
        if not _NAME.fullmatch(self.name):
            self.status = "broken"
            return text[end if end >= 0 else _MOST_HEAD :]
        self._next = (_KEY, CLOSE)
        return text[end:]

    def _tag(self, text: str) -> str:
        """Read white space and one of the tags that may come."""
        text = text.lstrip()
        self._pending = ""
        if tag := next((tag for tag in self._next if text.startswith(tag)), None):
            if tag == CLOSE:
                self.status = "closed"
            else:
                self._until = Until(*_ENDS[tag])
            return text[len(tag) :]
        if any(tag.startswith(text) for tag in self._next):
            self._pending = text
            return ""
        self.status = "broken"
        return text

    def _inside_tags(self, until: Until, text: str) -> str:
        if (found := until.push(text)) is None:
            return ""
        inner, rest = found
        self._until = None
        if until.found == CLOSE:
            self.status = "closed"
        elif self._next == (_VALUE,):
            self.arguments.append((self._key, inner))
            self._next = (_KEY, CLOSE)
        else:
            self._key = inner.strip()
            self._next = (_VALUE,)
        return rest


def _content(text: str) -> list[Piece]:
    return [Content(text)] if text else []
