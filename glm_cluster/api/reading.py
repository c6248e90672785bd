"""How a chat's output is read: what of it is text, what reasoning, what calls of tools.

Knows deltas of text and puts those of reasoning and calls beside. Refuses to know how a family writes them.
"""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from glm_cluster.api.answers import CallDelta, Delta
from glm_cluster.text.tokenizer import Tokenizer
from glm_cluster.text.tools.dialect import Dialect
from glm_cluster.text.tools.either import CallReader
from glm_cluster.text.tools.output import REASONING_SHOWN, SHOWN, Family, OutputReader, call_reader
from glm_cluster.text.tools.pieces import ArgumentsDelta, CallStart, Content, Piece, Reasoning
from glm_cluster.text.tools.reasoning import ReasoningSplitter, State
from glm_cluster.text.tools.tool import Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What to look for in the outputs of one request."""

    dialect: Dialect
    tools: tuple[Tool, ...]  # as the model knows them; none: no calls are looked for
    thinking: State  # where the prompt leaves the model, if it thinks
    certain: bool = False  # a grammar makes a call of whatever begins as one
    at_once: bool = False  # calls come first, or the output is all text
    parallel: bool = True  # more than one call
    skip_newline: bool = False

    @property
    def is_needed(self) -> bool:
        """Whether there can be anything but text."""
        return self.dialect.thinks or bool(self.tools and self.dialect.family)

    def shown(self, tokenizer: Tokenizer) -> Mapping[int, bytes]:
        """The control tokens that the text must have in it, by id."""
        names = REASONING_SHOWN if self.dialect.thinks else ()
        if self.tools and self.dialect.family is not None:
            names = (*names, *SHOWN[self.dialect.family])
        return {tokenizer.special_ids[name]: name.encode() for name in names if name in tokenizer.special_ids}

    def begin(self) -> "DeltaReader":
        """A reader for one choice."""
        family = self.dialect.family
        reader = OutputReader(
            calls=self._calls(family) if self.tools and family else None,
            thinks=ReasoningSplitter(self.thinking) if self.dialect.thinks else None,
            skip_newline=self.skip_newline,
        )
        return DeltaReader(reader, most_calls=None if self.parallel else 1)

    def _calls(self, family: Family) -> CallReader:
        return call_reader(family, self.tools, certain=self.certain, at_once=self.at_once)


class DeltaReader:
    """Reads one choice. Its calls have the ids by which clients will speak of them."""

    def __init__(self, reader: OutputReader, *, most_calls: int | None) -> None:
        self._reader = reader
        self._most_calls = most_calls
        self._num_calls = 0

    def read(self, delta: Delta) -> Delta:
        """`delta` with its text in parts."""
        pieces = self._reader.push(delta.text)
        if delta.finish is not None:
            pieces += self._reader.finish()
        calls = tuple(self._calls(pieces))
        return replace(
            delta,
            text="".join(piece.text for piece in pieces if isinstance(piece, Content)),
            reasoning="".join(piece.text for piece in pieces if isinstance(piece, Reasoning)),
            calls=calls,
            finish="tool_calls" if delta.finish == "stop" and self._num_calls else delta.finish,
        )

    def _calls(self, pieces: Iterable[Piece]) -> list[CallDelta]:
        """One delta for each call that begins or goes on."""
        calls: list[CallDelta] = []
        for piece in pieces:
            if not isinstance(piece, CallStart | ArgumentsDelta) or self._is_beyond(piece.index):
                continue
            if isinstance(piece, CallStart):
                self._num_calls += 1
                calls.append(CallDelta(piece.index, "", f"call_{secrets.token_hex(12)}", piece.name))
            elif calls and calls[-1].index == piece.index:
                calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + piece.text)
            else:
                calls.append(CallDelta(piece.index, piece.text))
        return calls

    def _is_beyond(self, index: int) -> bool:
        return self._most_calls is not None and index >= self._most_calls
