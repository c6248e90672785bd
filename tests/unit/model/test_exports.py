"""The package's public names exist, and reading a config imports no torch."""

import subprocess
import sys

import glm_cluster.model as package


def test_every_public_name_resolves() -> None:
    assert {name: getattr(package, name).__name__ for name in package.__all__} == {n: n for n in package.__all__}


def test_a_config_needs_no_torch() -> None:
    code = "import sys; from glm_cluster.model import GlmConfig; GlmConfig(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
