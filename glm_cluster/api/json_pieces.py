"""JSON in pieces, so that a long body keeps neither the event loop nor the interpreter to itself. Knows no wire."""

import json
from collections.abc import Iterable, Iterator, Mapping

_PIECE_BYTES = 64 << 10  # what goes out in one message
_ITEMS = 256  # of a list, encoded at one go: tens of microseconds
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def json_pieces(body: object) -> Iterator[bytes]:
    """The JSON of `body`, without spaces."""
    return coalesced(piece.encode() for piece in _pieces(body))


def coalesced(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces that are worth sending."""
    pending: list[bytes] = []
    num_bytes = 0
    for piece in pieces:
        pending.append(piece)
        if (num_bytes := num_bytes + len(piece)) >= _PIECE_BYTES:
            yield b"".join(pending)
            pending, num_bytes = [], 0
    if pending:
        yield b"".join(pending)


def _pieces(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield "{"
        for index, (name, item) in enumerate(value.items()):
            yield f"{',' if index else ''}{_ENCODER.encode(str(name))}:"
            yield from _pieces(item)
        yield "}"
    elif isinstance(value, list | tuple) and value:
        yield "["
        yield from _items(value) if isinstance(value[0], Mapping | list | tuple) else _slices(value)
        yield "]"
    else:
        yield _ENCODER.encode(value)


def _items(items: list[object] | tuple[object, ...]) -> Iterator[str]:
    for index, item in enumerate(items):
        if index:
            yield ","
        yield from _pieces(item)


def _slices(items: list[object] | tuple[object, ...]) -> Iterator[str]:
    """A list of numbers or strings, many at a time."""
    for start in range(0, len(items), _ITEMS):
        yield ("," if start else "") + _ENCODER.encode(items[start : start + _ITEMS])[1:-1]
