"""Under load one replica becomes two and one again, and no request fails."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from support.cluster import Case, RunningCluster, eventually, stream_ids


async def test_one_two_one(
    start_cluster: Callable[..., RunningCluster],
    settings: Callable[..., dict[str, Any]],
    cases: Callable[..., list[Case]],
):
    scaling = {"target_ongoing_requests": 2, "upscale_delay_s": 1, "downscale_delay_s": 2}
    cluster = start_cluster(settings(min_replicas=1, max_replicas=2, **scaling))
    (case,) = cases(1, seed=30, max_tokens=(150, 150))
    enough = asyncio.Event()

    async def client_of(client: httpx.AsyncClient) -> int:
        served = 0
        while not enough.is_set():
            assert tuple(await stream_ids(client, case)) == case.expected
            served += 1
        return served

    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=120) as client:
        clients = [asyncio.create_task(client_of(client)) for _ in range(8)]
        await asyncio.to_thread(eventually, lambda: cluster.ask("num_replicas") == 2, "two replicas")
        await asyncio.sleep(2)  # with both at work
        for task in clients[1:]:
            assert not task.done(), task.exception()
        enough.set()
        assert all(await asyncio.gather(*clients))
    await asyncio.to_thread(eventually, lambda: cluster.ask("num_replicas") == 1, "one replica again")
    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=120) as client:
        assert tuple(await stream_ids(client, case)) == case.expected
