"""The usage log: a JSON line for each request, written by a thread of its own.

Knows records and a file. Refuses to know requests, and to hold any of them up: what cannot be written is counted.
"""

import json
import os
import queue
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from glm_cluster.metrics import USAGE_LOST, Meters

MAX_PENDING = 10_000  # records; a disk that hangs must not fill the memory
_MODE = 0o600
_CLOSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """What became of one request."""

    time: str  # when it ended, UTC
    request_id: str  # an answer's id ends in it
    client_request_id: str | None  # the client's own name for it, or else Serve's
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
    status: str  # ok, cancelled, or the error's code
    duration_s: float


class UsageLog:
    """Appends records to a file, one write each, so that several processes may share it. `close()` ends the thread."""

    def __init__(self, path: Path, meters: Meters) -> None:
        self._path = path
        self._meters = meters
        self._pending: queue.Queue[UsageRecord | None] = queue.Queue(MAX_PENDING)
        self._torn = False  # the file ends within a line
        self._writer = threading.Thread(target=self._run, name="usage-log", daemon=True)
        self._writer.start()

    def put(self, record: UsageRecord) -> None:
        """Have a record written soon; returns at once."""
        try:
            self._pending.put_nowait(record)
        except queue.Full:
            self._meters.count(USAGE_LOST, 1)

    def close(self) -> None:
        """Write what is pending, for a few seconds at most."""
        with suppress(queue.Full):
            self._pending.put(None, timeout=_CLOSE_S)
        self._writer.join(_CLOSE_S)

    def _run(self) -> None:
        while (record := self._pending.get()) is not None:
            self._write(json.dumps(asdict(record), separators=(",", ":")).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        """Append a line. The file is opened each time: it may have been moved away, or the disk been mounted anew."""
        line = b"\n" + line if self._torn else line
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
            try:
                written = os.write(file, line)
            finally:
                os.close(file)
        except OSError:
            self._meters.count(USAGE_LOST, 1)
            return
        self._torn = 0 < written < len(line)
        if written < len(line):
            self._meters.count(USAGE_LOST, 1)
