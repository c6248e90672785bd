"""The oracle of the page: transformers 5.0.0rc1, which `make test-rc1` puts before the installed one."""

import pytest
import transformers
from support.parity import Pairs


@pytest.fixture(scope="session", autouse=True)
def _the_version_of_the_page() -> None:
    """Nothing here means anything against another version."""
    assert transformers.__version__ == "5.0.0rc1", "run `make test-rc1`"


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """5.0.0rc1's model and ours with one set of weights, made once for each set of options."""
    return Pairs(lambda: tmp_path_factory.mktemp("pair"))
