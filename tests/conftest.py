"""Fixtures every suite shares. `support` holds the plain functions."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch: its threads sleep rather than spin, and parallel test workers take one core each.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
from support.checkpoints import write_checkpoint

# How long an example takes is no question of these tests, and on a busy machine anybody's guess.
hypothesis.settings.register_profile("untimed", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("untimed")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real GLM tokenizers, templates and CRDs; a checkout without them skips what needs them."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the reference data beside the checkout (../shared/data) is absent")
    return SHARED / "data"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make tiny random checkpoints, one directory for each distinct set of config changes."""
    made: dict[str, Path] = {}

    def make(**changes: Any) -> Path:
        key = repr(sorted(changes.items()))
        if key not in made:
            made[key] = write_checkpoint(tmp_path_factory.mktemp("glm"), **changes)
        return made[key]

    return make


@pytest.fixture(scope="session")
def demo_directory() -> Path:
    """The demo model, fetched into the user's cache on first use."""
    from glm_cluster.model.checkpoints.demo import ensure_demo_model

    return ensure_demo_model()
