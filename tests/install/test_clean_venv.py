"""`pip install .` into an empty virtual environment, without the test extra: the command line answers.

Minutes long and needs a package index, so it has a make target of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clean_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    venv = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [venv / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    if index := os.environ.get("TORCH_INDEX_URL"):
        pin = next(x for x in (ROOT / "constraints.txt").read_text().splitlines() if x.startswith("torch=="))
        subprocess.run([*pip, "--index-url", index, pin], check=True)
    subprocess.run([*pip, ROOT], check=True)
    return venv


def test_the_oracle_is_not_installed(clean_venv: Path) -> None:
    found = subprocess.run(
        [clean_venv / "bin" / "python", "-c", "import transformers"], check=False, capture_output=True
    )
    assert found.returncode != 0


def test_generate_answers(clean_venv: Path, demo_directory: Path, tmp_path: Path) -> None:
    command = [clean_venv / "bin" / "glm-cluster", "generate", "--model", demo_directory]
    command += ["--prompt", "What is the capital of France?", "--max-tokens", "12"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "Paris" in answer.stdout


def test_recipes_travel_in_the_wheel(clean_venv: Path, tmp_path: Path) -> None:
    code = "from glm_cluster.model.checkpoints.recipes import load_recipe; print(load_recipe('demo').name)"
    shown = subprocess.run(
        [clean_venv / "bin" / "python", "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert shown.stdout.strip() == "demo"
