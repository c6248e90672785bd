"""The usage log: a JSON line for each request, written by a thread of its own, or else by another process.

Knows records, the log and its ledgers. Refuses to know requests, and to hold any of them up: what cannot be written is
counted.
"""

import logging
import queue
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from glm_cluster.api.inheritance import inherit
from glm_cluster.api.ledger import ROOM, Ledger, Slot, ledger_directory
from glm_cluster.api.line_file import LineFile
from glm_cluster.api.usage_record import UsageRecord
from glm_cluster.metrics import USAGE_LOST, USAGE_UNKEPT, Meters

MAX_PENDING = 10_000  # records; a disk that hangs must not fill the memory
_CLOSE_S = 5.0
_INHERIT_S = 5.0  # how often the ledgers of other processes are looked at


class UsageLog:
    """Writes each opened request's record once, even if this process is killed. `close()` ends the thread.

    Then the record is written by another log of the same path on this machine: one that lives, or the next one.
    """

    def __init__(self, path: Path, meters: Meters, *, directory: Path | None = None) -> None:
        self._file = LineFile(path)
        self._meters = meters
        self._directory = directory or ledger_directory(path)
        self._ledger = self._new_ledger()
        self._pending: queue.Queue[tuple[UsageRecord, Slot] | None] = queue.Queue(MAX_PENDING)
        self._writer = threading.Thread(target=self._run, name="usage-log", daemon=True)
        self._writer.start()

    def enter(self, record: UsageRecord) -> Slot:
        """Note a request that is admitted. `record` is what it leaves if this process dies right now."""
        if len(opening := record.line()) > ROOM:
            opening = replace(record, user=None).line()
        slot = None if self._ledger is None else self._ledger.enter(opening)
        if slot is None:
            self._meters.count(USAGE_UNKEPT, 1)
        return slot or Slot.unkept()

    def put(self, record: UsageRecord, slot: Slot) -> None:
        """Have the record of an opened request written soon; returns at once."""
        slot.close(record.ending())
        try:
            self._pending.put_nowait((record, slot))
        except queue.Full:
            self._meters.count(USAGE_LOST, 1)
            slot.free()

    def close(self) -> None:
        """Write what is pending, for a few seconds at most."""
        with suppress(queue.Full):
            self._pending.put(None, timeout=_CLOSE_S)
        self._writer.join(_CLOSE_S)

    def _new_ledger(self) -> Ledger | None:
        try:
            return Ledger(self._directory)
        except OSError as error:
            logging.getLogger(__name__).error("usage records are lost if this process is killed: %s", error)
            return None

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            if (left_s := due - time.monotonic()) <= 0:
                self._inherit()
                due = time.monotonic() + _INHERIT_S
                continue
            with suppress(queue.Empty):
                if (item := self._pending.get(timeout=left_s)) is None:
                    break
                self._write(*item)
        if self._ledger is not None:
            self._ledger.close()

    def _write(self, record: UsageRecord, slot: Slot) -> None:
        try:
            self._file.append(record.line(), slot.mark)
        except Exception as error:  # the edge of the thread that writes all the others too
            logging.getLogger(__name__).error("a usage record is lost: %s", error)
            self._meters.count(USAGE_LOST, 1)
        slot.free()

    def _inherit(self) -> None:
        try:
            with suppress(OSError):  # the log cannot be written now: what is left stays where it is
                inherit(self._directory, self._file, self._meters)
        except Exception:  # the edge of the thread that writes our own records too
            logging.getLogger(__name__).exception("usage records of processes that are gone stay where they are")
