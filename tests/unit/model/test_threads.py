"""Cores are counted within the container's quota, and waiting threads are told to sleep before torch loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glm_cluster.model import threads


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, [2]),
        ({"cpu.max": "max 100000"}, []),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, [4]),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        ({}, []),
    ],
)
def test_quota_in_whole_cores(tmp_path: Path, files: dict[str, str], cores: list[int]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert threads._quotas(tmp_path) == cores


def test_at_least_one_core_and_no_more_than_the_affinity() -> None:
    assert 1 <= threads.usable_cores() <= len(os.sched_getaffinity(0))


def test_the_wait_policy_comes_before_torch_and_leaves_the_users_alone() -> None:
    code = (
        "import os, sys; from glm_cluster.model.threads import prepare_threads; prepare_threads();"
        "sys.exit('torch' in sys.modules or os.environ['OMP_WAIT_POLICY'] != sys.argv[1])"
    )
    clean = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    subprocess.run([sys.executable, "-c", code, "PASSIVE"], check=True, env=clean)
    subprocess.run([sys.executable, "-c", code, "ACTIVE"], check=True, env={**clean, "OMP_WAIT_POLICY": "ACTIVE"})
