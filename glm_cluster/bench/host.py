"""Where and by what a figure was made: the machine, the commit, the command. Knows the system, no measurements."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from glm_cluster.model.threads import usable_cores


def about(*, load_before: float) -> dict[str, Any]:
    """What every result of record begins with; `load_before` tells of neighbours on the machine."""
    return {
        "command": shlex.join(["glm-cluster", *sys.argv[1:]]),
        "commit": commit(Path(__file__).parent),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "machine": machine(),
        "load_before": round(load_before, 2),  # the last minute's mean of runnable threads
        "torch": version("torch"),
    }


def machine() -> str:
    """Cores that may be used, the processor's name, and memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{usable_cores()} cores {processor(Path('/proc/cpuinfo'))}, {memory >> 30} GiB"


def processor(cpuinfo: Path) -> str:
    """The processor as the kernel names it; its architecture where the kernel gives no name."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def commit(directory: Path) -> str | None:
    """The commit of a source checkout, marked where files differ from it; None of an installed package."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()
