"""Processes that are killed one instruction later each: `python ledger_victim.py log|heir DIRECTORY STEP`.

For the n-th point of the log's own code that is passed (a line, or with STEP > 1 every so many bytecodes) a directory
DIRECTORY/n is made, in which a process works until it gets there and kills itself. In the last it
lives on. What `log` does is in the file `said`. `heir` inherits a copy of DIRECTORY/left.
"""

import os
import shutil
import signal
import sys
import threading
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

from glm_cluster.api import inheritance, ledger, line_file, usage_log
from glm_cluster.api.inheritance import inherit
from glm_cluster.api.line_file import LineFile
from glm_cluster.api.usage_log import UsageLog
from glm_cluster.api.usage_record import FRONT_DIED, UsageRecord
from glm_cluster.metrics import NoMeters

OURS = {module.__file__ for module in (inheritance, ledger, line_file, usage_log)}
NUM_REQUESTS = 3
CHUNK_SLOTS = 2  # so that the ledger has to grow


class Death:
    """Comes at the given point, in whatever thread that is passed."""

    def __init__(self, point: int, step: int) -> None:
        self._left = point * step
        self._event = "line" if step == 1 else "opcode"
        threading.settrace(self)
        sys.settrace(self)

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in OURS:
            return None
        frame.f_trace_opcodes = self._event == "opcode"
        if event == self._event:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def record(request_id: str, **changes: Any) -> UsageRecord:
    values: dict[str, Any] = {field.name: "x" for field in fields(UsageRecord)} | {"request_id": request_id}
    counts = {name: 0 for name in values if name.endswith("_tokens")}
    return UsageRecord(**{**values, **counts, "duration_s": 0.25, "status": FRONT_DIED, **changes})


def log(directory: Path) -> None:
    """Three requests: one ends, one ends and is hardly written when the process does, and one never does."""
    said = os.open(directory / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(*words: object) -> None:
        os.write(said, (" ".join(map(str, words)) + "\n").encode())

    log = UsageLog(directory / "usage", NoMeters(), directory=directory / "ledgers")
    for index in range(NUM_REQUESTS):
        say("asks", index)
        slot = log.enter(record(f"id-{index}"))
        say("enters", index)
        for count in (1, 300):
            say("gives", index, count)
            slot.count(count, count, 0)
            say("gave", index, count)
        if index < NUM_REQUESTS - 1:
            log.put(record(f"id-{index}", completion_tokens=300, generated_tokens=300, status="ok"), slot)
    log.close()
    say("over")


def heir(directory: Path) -> None:
    """Inherit what was left."""
    inherit(directory / "ledgers", LineFile(directory / "usage"), NoMeters())


def main(role: str, directory: Path, step: int) -> None:
    ledger._CHUNK_SLOTS, ledger._CHUNK_BYTES = CHUNK_SLOTS, CHUNK_SLOTS * ledger.SLOT_BYTES
    point = 1
    while True:
        place = directory / str(point)
        if role == "heir":
            shutil.copytree(directory / "left", place)
        else:
            place.mkdir()
        if (child := os.fork()) == 0:
            Death(point, step)
            (heir if role == "heir" else log)(place)
            os._exit(0)
        if os.WIFEXITED(os.waitpid(child, 0)[1]):
            return
        point += 1


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
