"""Two fronts, and a pool between them: a key's budget is given once, whichever front its requests come to."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.cluster import INGRESS, RunningCluster, eventually

from glm_cluster.keys import append_key, new_key

PER_MINUTE = 10
TELLING_S = 6.0  # twelve times what it takes, on a machine that does more than this
POOL = "ServeReplica:glm:GlmPool"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fronts") / "keys"


@pytest.fixture(scope="module")
def secrets(file: Path) -> dict[str, str]:
    """Keys with a budget of requests, by name."""
    made = {name: new_key(name) for name in ("together", "alone")}
    for _, entry in made.values():
        append_key(file, entry)
    text = file.read_text().replace("}", f", requests_per_minute: {PER_MINUTE}}}")
    file.write_text(text)
    return {name: secret for name, (secret, _) in made.items()}


@pytest.fixture(scope="module")
def cluster(
    start_cluster: Callable[..., RunningCluster],
    settings: Callable[..., dict[str, Any]],
    file: Path,
    secrets: dict[str, str],
) -> RunningCluster:
    cluster = start_cluster(settings(num_ingresses=2, api_keys_file=str(file)))
    eventually(lambda: len(cluster.processes(INGRESS)) == 2, "both fronts")
    return cluster


def spend(cluster: RunningCluster, secret: str, count: int) -> int:
    """How many of so many requests are let in, each on a connection of its own, so that both fronts get some."""
    headers = {"authorization": f"Bearer {secret}"}
    body = {"model": "tiny", "prompt": [5], "max_tokens": 1}
    url = f"{cluster.http_url}/v1/completions"
    answers = [httpx.post(url, json=body, headers=headers, timeout=60).status_code for _ in range(count)]
    assert set(answers) <= {200, 429}
    return answers.count(200)


def flows_back(seconds: float) -> int:
    """How many requests' worth comes back in so much time."""
    return int(seconds * PER_MINUTE / 60) + 1


def test_a_budget_is_given_once_by_both(cluster: RunningCluster, secrets: dict[str, str]):
    """And when the pool dies, by each: its requests are answered all the same."""
    started = time.monotonic()
    taken = spend(cluster, secrets["together"], PER_MINUTE)
    time.sleep(TELLING_S)
    taken += spend(cluster, secrets["together"], 2 * PER_MINUTE)
    assert taken <= PER_MINUTE + flows_back(time.monotonic() - started)
    (pool,) = cluster.processes(POOL)
    pool.kill()
    assert spend(cluster, secrets["alone"], PER_MINUTE) == PER_MINUTE
    eventually(lambda: any(process != pool for process in cluster.processes(POOL)), "another pool")
