"""The record of one request's use: a JSON line, and what of it is known only at the end.

Knows fields. Refuses to know files, and who writes them.
"""

import json
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

FRONT_DIED = "front_died"  # the status of a request whose front process was gone before it
_ENDING = ("time", "cached_tokens", "completion_tokens", "generated_tokens", "finish", "status", "duration_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """What became of one request."""

    time: str  # when it ended, UTC
    request_id: str  # an answer's id ends in it
    client_request_id: str | None  # the client's own name for it
    key: str | None  # the name of its bearer's
    user: str | None  # as the client says
    model: str
    wire: str
    route: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int  # delivered
    generated_tokens: int  # made by the engine, delivered or not
    finish: str | None  # of its last choice; None: it did not come to an end
    status: str  # ok, cancelled, front_died, or the error's code
    duration_s: float

    def line(self) -> bytes:
        """The record as it is logged."""
        return json_line({name: getattr(self, name) for name in _FIELDS})

    def ending(self) -> bytes:
        """What changes between a request's admission and its end."""
        return json_line({name: getattr(self, name) for name in _ENDING})


_FIELDS = tuple(field.name for field in fields(UsageRecord))
_ENCODER = json.JSONEncoder(separators=(",", ":"))


def json_line(values: dict[str, Any]) -> bytes:
    """A mapping on a line of its own."""
    return _ENCODER.encode(values).encode() + b"\n"


def utc(seconds: float) -> str:
    """A record's way to write a time."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
