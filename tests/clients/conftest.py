"""One cluster for all clients: the demo model, which answers, and the same one again, which makes vectors."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import RunningCluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They share a cluster, which takes the whole machine."""
    here = str(Path(__file__).parent)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.demo)
            item.add_marker(pytest.mark.xdist_group("cluster"))


@pytest.fixture(scope="session")
def cluster(demo_directory: Path) -> Iterator[RunningCluster]:
    common = {"model": str(demo_directory), "device": "cpu", "kv_cache_bytes": 64 << 20, "max_model_len": 1024}
    models = [{**common, "model_name": "demo"}, {**common, "model_name": "demo-vectors", "task": "embed"}]
    running = RunningCluster({"models": models})
    yield running
    running.close()


@pytest.fixture(scope="session")
def url(cluster: RunningCluster) -> str:
    """What clients call the base URL."""
    return f"{cluster.http_url}/v1"


@pytest.fixture(scope="session")
def question() -> list[dict[str, str]]:
    """Something the demo model knows."""
    return [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
