"""One replica of two ranks: the ids of one rank, and what happens when a rank dies or hangs."""

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from support.cluster import RANK, REPLICA, Case, RunningCluster, all_at_once, eventually, stream_ids

MakeCases = Callable[..., list[Case]]
STEP_DEADLINE_S = 5.0


@pytest.fixture(scope="module")
def cluster(start_cluster: Callable[..., RunningCluster], settings: Callable[..., dict[str, Any]]) -> RunningCluster:
    return start_cluster(settings(tp=2, step_deadline_s=STEP_DEADLINE_S))


async def test_two_ranks_make_the_ids_of_one(cluster: RunningCluster, cases: MakeCases):
    assert len(cluster.processes(RANK)) == 2
    many = cases(8, seed=10, max_tokens=(1, 60))
    for case, ids in zip(many, await all_at_once(cluster, many), strict=True):
        assert tuple(ids) == case.expected


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
@pytest.mark.parametrize("index", [0, 1])
async def test_a_lost_rank_costs_no_token(cluster: RunningCluster, cases: MakeCases, blow: signal.Signals, index: int):
    """The whole group is made anew: both ranks have new processes, and the stream goes on with the right ids."""
    (case,) = cases(1, seed=11, max_tokens=(400, 400))
    before = sorted(cluster.processes(RANK), key=lambda p: p.create_time())
    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=120) as client:
        stream = asyncio.create_task(stream_ids(client, case))
        await asyncio.sleep(0.2)
        before[index].send_signal(blow)
        started = time.monotonic()
        await asyncio.to_thread(eventually, lambda: not cluster.healthy(), "health turns red", timeout_s=20)
        assert blow is signal.SIGSTOP or time.monotonic() - started < STEP_DEADLINE_S
        assert tuple(await stream) == case.expected
    await asyncio.to_thread(eventually, cluster.healthy, "health turns green")
    after = {p.pid for p in cluster.processes(RANK)}
    assert len(after) == 2
    assert not after & {p.pid for p in before}


async def test_a_killed_replica_leaves_no_rank(cluster: RunningCluster, cases: MakeCases):
    ranks = cluster.processes(RANK)
    (replica,) = cluster.processes(REPLICA)
    replica.kill()
    eventually(lambda: not any(r.is_running() for r in ranks), "the ranks die with it", timeout_s=10)
    (case,) = cases(1, seed=12, max_tokens=(20, 20))
    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=120) as client:
        assert tuple(await stream_ids(client, case)) == case.expected
