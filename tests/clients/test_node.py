"""OpenAI's official client for Node; skipped where there is no Node."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("node")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script beside its installed dependencies."""
    if shutil.which("npm") is None:
        pytest.skip("needs Node.js and npm")
    place = tmp_path_factory.mktemp("node")
    shutil.copytree(SCRIPT, place, dirs_exist_ok=True)
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=place, check=True, timeout=300)
    return place / "chat.mjs"


def test_the_node_client_understands_us(script: Path, url: str):
    run = subprocess.run(
        ["node", script.name, url], cwd=script.parent, check=True, capture_output=True, text=True, timeout=300
    )
    got = json.loads(run.stdout)
    assert got["models"] == ["demo", "demo-vectors"]
    assert "Paris" in got["whole"]
    assert got["streamed"] == got["whole"]
    assert got["usage"]["total_tokens"] == got["usage"]["prompt_tokens"] + got["usage"]["completion_tokens"]
    assert got["widths"] == [576, 576]
    assert got["refused"] == {"status": 400, "param": "temperature"}
