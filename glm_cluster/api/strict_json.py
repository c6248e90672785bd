"""Strict JSON: UTF-8, no NaN or Infinity, no name twice in an object, no more in it than a request can need.

Knows text, nothing of requests.

A long body is read on a thread beside the event loop, and must let the loop have its turn. The library's scanner in C
holds the interpreter for ten milliseconds a megabyte of numbers; so its other one, in Python, reads long bodies, and
takes flat arrays a piece at a time from the first. It needs microseconds for a value, so their number is bounded.
"""

import json
from collections.abc import Callable, Sequence
from json.decoder import JSONArray, JSONObject  # type: ignore[attr-defined]  # not in the stubs
from json.scanner import py_make_scanner  # type: ignore[attr-defined]  # not in the stubs
from typing import Any, TypeAlias

from glm_cluster.errors import InvalidRequest

MAX_DEPTH = 100  # arrays and objects inside one another; protobuf stops there too
MAX_VALUES = 1 << 17  # of a long body, where a flat array is one: thirty for each message of the longest conversation
_LONG = 64 << 10  # characters
_FLAT = 256  # a shorter array is not worth a look
_PIECE = 16 << 10

_ScanOnce: TypeAlias = Callable[[str, int], tuple[Any, int]]


def decode_json(body: bytes, *, param: str | None = None) -> object:
    """The value that `body` is the JSON of; refuse in a sentence what is none. `param`: the field that it stands in."""
    what = param or "the body"
    try:
        text = body.decode()
        value = (_AT_ONCE if len(text) <= _LONG else _ByTurns()).decode(text)
    except ValueError as error:
        raise InvalidRequest(f"{what} is not valid JSON: {error}", param=param) from error
    except RecursionError as error:
        raise _too_deep(what, param) from error
    except _TooManyError as error:
        raise InvalidRequest(
            f"{what} holds more than {MAX_VALUES} values (a list of numbers is one); send fewer at a time", param=param
        ) from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise _too_deep(what, param)
    return value


def _too_deep(what: str, param: str | None) -> InvalidRequest:
    return InvalidRequest(
        f"{what} holds more than {MAX_DEPTH} arrays or objects inside one another; send a flatter one", param=param
    )


def _is_deeper(value: object, most: int) -> bool:
    """Whether arrays and objects stand more than `most` deep in a value; looks at one depth after the other."""
    level = [value]
    for _ in range(most):
        held = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [inner for items in held for inner in items if isinstance(inner, dict | list)]
        if not level:
            return False
    return True


class _Strict(json.JSONDecoder):
    """What both ways of reading refuse."""

    def __init__(self) -> None:
        super().__init__(parse_constant=_no_constant, object_pairs_hook=_no_twins)


class _TooManyError(Exception):
    """There are more values than may be."""


class _ByTurns(_Strict):
    """The same values and errors of one text, in many short calls."""

    def __init__(self) -> None:
        super().__init__()
        self._num_left = MAX_VALUES
        self.parse_array = self._array
        self.parse_object = self._object
        self.scan_once = self._scan = py_make_scanner(self)

    def _counted(self, text: str, begin: int) -> tuple[Any, int]:
        """A value that stands in an array or object."""
        self._num_left -= 1
        if self._num_left < 0:
            raise _TooManyError
        found: tuple[Any, int] = self._scan(text, begin)
        return found

    def _object(self, where: tuple[str, int], strict: bool, scan_once: _ScanOnce, *hooks: object) -> tuple[Any, int]:
        """An object whose brace stands before `where`, and the place after it."""
        found: tuple[Any, int] = JSONObject(where, strict, self._counted, *hooks)
        return found

    def _array(self, where: tuple[str, int], scan_once: _ScanOnce) -> tuple[list[Any], int]:
        """An array whose bracket stands before `where`, and the place after it."""
        text, begin = where
        end = text.find("]", begin)
        if end - begin > _FLAT and all(text.find(mark, begin, end) < 0 for mark in '[{"'):
            try:
                return _flat_array(text, begin, end), end + 1
            except ValueError:  # to be found again where the message can say its place in the text
                pass
        found: tuple[list[Any], int] = JSONArray(where, self._counted)
        return found


def _flat_array(text: str, begin: int, end: int) -> list[Any]:
    """The values between two brackets with no string, array or object between them, or ValueError."""
    values: list[Any] = []
    while begin <= end:
        cut = text.find(",", min(begin + _PIECE, end), end)
        cut = end if cut < 0 else cut
        piece = _AT_ONCE.decode(f"[{text[begin:cut]}]")
        if not piece:
            raise ValueError("nothing between two commas")
        values += piece
        begin = cut + 1
    return values


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _no_twins(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return made


_AT_ONCE = _Strict()
