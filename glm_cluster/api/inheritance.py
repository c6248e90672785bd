"""What becomes of the requests that a killed front process had open: each gets its record, once, from somebody else.

Knows ledgers, records and the log. Refuses to know who is alive: that a ledger's lock is free says it.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from glm_cluster.api.ledger import Left, Slot, ledger_directory, settle_left
from glm_cluster.api.line_file import LineFile
from glm_cluster.api.usage_record import json_line, utc
from glm_cluster.metrics import USAGE_LOST, Meters, NoMeters


def inherit(directory: Path, file: LineFile, meters: Meters) -> None:
    """Write the records that are left in `directory`. Raises OSError if the log cannot be written: try again later."""
    settle_left(directory, partial(_settle, file, meters))


def inherit_all(log: Path) -> None:
    """Do the same for the log at `log`, on behalf of a cluster that has ended."""
    inherit(ledger_directory(log), LineFile(log), NoMeters())


def _settle(file: LineFile, meters: Meters, slot: Slot, left: Left) -> None:
    """Write one record, unless whoever marked the slot got it written before dying."""
    try:
        record = _record(left)
        request_id = record["request_id"]
    except (ValueError, KeyError, TypeError):
        meters.count(USAGE_LOST, 1)
        return
    if left.mark is None or not file.holds(*left.mark, partial(_is_of, request_id)):
        file.append(json_line(record), slot.mark)


def _record(left: Left) -> dict[str, Any]:
    """The record as it is: by another version of this program, it may have other fields."""
    opening: dict[str, Any] = json.loads(left.opening)
    ending: dict[str, Any] = {} if left.ending is None else json.loads(left.ending)
    return opening | (ending or _so_far(left, opening["duration_s"]))


def _so_far(left: Left, duration_s: float) -> dict[str, Any]:
    """What is known of a request that has not ended."""
    return {
        "time": utc(left.seen_s),
        "cached_tokens": left.num_cached,
        "completion_tokens": left.num_delivered,
        "generated_tokens": left.num_generated,
        "duration_s": round(duration_s + max(left.seen_s - left.entered_s, 0.0), 6),
    }


def _is_of(request_id: str, line: bytes) -> bool:
    if request_id.encode() not in line:
        return False
    try:
        return bool(json.loads(line)["request_id"] == request_id)
    except (ValueError, KeyError, TypeError):
        return False
