"""The Makefile, with a python that only pretends: what is installed when, and that a failure is one."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

# Writes down what it is asked, "makes" an environment by copying itself into it, and fails on request.
PRETENDER = """#!/bin/sh
echo "$(basename "$0") $*" >> "{log}"
case "$*" in *"{fails}"*) exit {status} ;; esac
case "$*" in
  *"-m venv"*) for name in python glm-cluster ruff mypy; do install -D "{self}" .venv/bin/$name; done ;;
esac
"""


class Checkout:
    """A folder with the Makefile and what it reads."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(root / name, folder)

    def make(self, *arguments: str, fails: str = "nothing", status: int = 1) -> "subprocess.CompletedProcess[str]":
        self.log.write_text("")
        pretender = self.folder / "pretender"
        text = PRETENDER.format(log=self.log, self=pretender, fails=fails, status=status)
        for path in (pretender, *(self.folder / ".venv" / "bin").glob("*")):
            path.write_text(text)
            path.chmod(0o755)
        command = ["make", *arguments, f"PYTHON={pretender}"]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=60)

    @property
    def ran(self) -> list[str]:
        return self.log.read_text().splitlines()

    def stamps(self) -> set[str]:
        return {path.name for path in (self.folder / ".venv").glob(".installed*")}


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Checkout:
    return Checkout(root, tmp_path)


def installs(ran: list[str]) -> list[str]:
    return [re.sub(r".* install ", "", line) for line in ran if " install " in line]


def test_serve_on_a_fresh_machine(checkout: Checkout) -> None:
    made = checkout.make("serve", "ARGS=--tp 3")
    assert (made.returncode, made.stderr) == (0, "")
    assert installs(checkout.ran) == ["-c constraints.txt -e ."]
    assert checkout.ran[-1] == "glm-cluster serve --tp 3"


def test_second_run_installs_nothing(checkout: Checkout) -> None:
    checkout.make("serve")
    checkout.make("serve")
    assert [line.strip() for line in checkout.ran] == ["glm-cluster serve"]


def test_changed_pin_installs_again(checkout: Checkout) -> None:
    checkout.make("serve")
    stamp = checkout.folder / ".venv" / ".installed"
    later = stamp.stat().st_mtime + 10
    os.utime(checkout.folder / "constraints.txt", (later, later))
    checkout.make("serve")
    assert installs(checkout.ran) == ["-c constraints.txt -e ."]


def test_torch_comes_first_from_the_given_index(checkout: Checkout, root: Path) -> None:
    checkout.make("serve", "TORCH_INDEX_URL=https://torch.invalid/cpu")
    pin = re.search(r"^torch==.*$", (root / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert pin
    torch = f"--no-deps --index-url https://torch.invalid/cpu {pin[0]}"
    assert installs(checkout.ran) == [torch, "-c constraints.txt -e ."]


@pytest.mark.parametrize("target", ["serve", "test"])
def test_failed_install_leaves_no_stamp(target: str, checkout: Checkout) -> None:
    assert checkout.make(target, fails="pip --disable-pip-version-check install").returncode != 0
    assert checkout.stamps() == set()


def test_failed_reinstall_takes_the_stamp_away(checkout: Checkout) -> None:
    assert checkout.make("lint").returncode == 0
    assert checkout.stamps() == {".installed", ".installed-test"}
    (checkout.folder / "pyproject.toml").touch()
    assert checkout.make("lint", fails="pip --disable-pip-version-check install").returncode != 0
    assert checkout.stamps() == set()


def test_order_of_the_tests(checkout: Checkout) -> None:
    made = checkout.make("test")
    assert (made.returncode, made.stderr) == (0, "")
    steps = [line for line in checkout.ran if " install " not in line and "venv" not in line and "-m pip" not in line]
    words = [
        "ruff check",
        "ruff format --check",
        "mypy",
        "tests/unit tests/contract",
        "tests/parallel",
        "tests/cluster",
    ]
    positions = [next(index for index, line in enumerate(steps) if word in line) for word in (*words, "-O tests/smoke")]
    assert positions == sorted(positions)


@pytest.mark.parametrize(
    "step",
    ["check .", "format --check", "tests/unit tests/contract", "tests/parallel", "tests/cluster", "-O tests/smoke.py"],
)
@pytest.mark.parametrize("status", [1, 5])
def test_any_failure_fails_the_run(step: str, status: int, checkout: Checkout) -> None:
    """Exit status 5 is pytest's for an empty selection: a folder that was renamed must not pass."""
    assert checkout.make("test", fails=step, status=status).returncode != 0


def test_ci_runs_make_test(root: Path) -> None:
    script = root / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    lines = script.read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in lines
    assert [line.removeprefix("exec ") for line in lines if "make " in line] == [
        "make clean",
        "make test",
        "make test-hostile",
        "make test-structured",
        "make test-clients",
        "make test-rc1",
        "make test-install",
    ]
