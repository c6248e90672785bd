"""How torch's CPU threads behave. Imports no torch, because one of the settings must come before it."""

import math
import os
from pathlib import Path


def prepare_threads() -> None:
    """Let OpenMP threads sleep at barriers instead of spinning. Call before torch is imported.

    On a host shared with anything else spinning is ruinous: two engines on two cores made 0.1 tokens/s each with
    libgomp's default and 10 with this.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def share_cores(num_sharers: int) -> None:
    """Give this process its share of the host's cores when `num_sharers` ranks run on it."""
    import torch

    torch.set_num_threads(max(1, usable_cores() // num_sharers))


def usable_cores() -> int:
    """Cores this process may use: its affinity, within its container's CPU quota."""
    return min(len(os.sched_getaffinity(0)), *_quotas(Path("/sys/fs/cgroup")), os.cpu_count() or 1)


def _quotas(cgroup: Path) -> list[int]:
    """The container's quota in whole cores, from cgroup v2 or v1; empty without one."""
    v2, v1 = cgroup / "cpu.max", cgroup / "cpu" / "cpu.cfs_quota_us"
    if v2.is_file():
        quota, period = v2.read_text().split()
    elif v1.is_file():
        quota, period = v1.read_text().strip(), v1.with_name("cpu.cfs_period_us").read_text().strip()
    else:
        return []
    return [max(1, math.ceil(int(quota) / int(period)))] if quota.isdigit() else []
