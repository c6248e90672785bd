"""What an answer consists of, in the order in which it comes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model wrote for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The model calls a tool. Calls of one answer are numbered from 0, and one ends before the next begins."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More of the arguments of a call. All deltas of a call put together are its arguments, JSON in general."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """Nothing more comes of the call."""

    index: int


Piece: TypeAlias = Content | Reasoning | CallStart | ArgumentsDelta | CallEnd


@dataclass(frozen=True, slots=True)
class Call:
    """A whole call."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """A whole answer. `None` where there was nothing of the kind."""

    content: str | None
    reasoning: str | None
    calls: tuple[Call, ...]


def whole_call(index: int, name: str, arguments: str) -> list[Piece]:
    """The pieces of a call that is known at once."""
    return [CallStart(index, name), ArgumentsDelta(index, arguments), CallEnd(index)]


def joined(pieces: Iterable[Piece]) -> Parsed:
    """Put the pieces of one answer together."""
    content: list[str] = []
    reasoning: list[str] = []
    names: list[str] = []
    arguments: list[list[str]] = []
    for piece in pieces:
        match piece:
            case Content(text):
                content.append(text)
            case Reasoning(text):
                reasoning.append(text)
            case CallStart(_, name):
                names.append(name)
                arguments.append([])
            case ArgumentsDelta(index, text):
                arguments[index].append(text)
            case CallEnd():
                pass
    calls = tuple(Call(name, "".join(parts)) for name, parts in zip(names, arguments, strict=True))
    return Parsed("".join(content) or None, "".join(reasoning) or None, calls)
