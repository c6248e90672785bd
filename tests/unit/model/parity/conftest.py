"""The pairs of models that this folder's tests share."""

import pytest
from support.parity import Pairs


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """HF's model and ours with one set of weights, made once for each set of options."""
    return Pairs(lambda: tmp_path_factory.mktemp("pair"))
