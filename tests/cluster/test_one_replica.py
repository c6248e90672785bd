"""One replica of one rank: what comes over the wire is what the engine makes offline."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.cluster import RANK, AtToken, Case, RunningCluster, all_at_once, events, eventually, stream_ids

from glm_cluster.api.proto import glm_pb2, glm_pb2_grpc

MakeCases = Callable[..., list[Case]]
EXPORT_S = 0.75  # more than the half second after which it is exported again


@pytest.fixture(scope="module")
def cluster(start_cluster: Callable[..., RunningCluster], settings: Callable[..., dict[str, Any]]) -> RunningCluster:
    return start_cluster(settings(), RAY_metrics_report_interval_ms="500")


async def grpc_ids(stub: glm_pb2_grpc.GlmStub, case: Case) -> list[int]:
    sampling = {name: value for name, value in case.sampling.items() if name != "max_tokens"}
    request = glm_pb2.GenerateRequest(
        model="tiny",
        token_ids=glm_pb2.TokenIds(ids=case.prompt),
        sampling=glm_pb2.Sampling(**sampling),
        max_tokens=case.sampling["max_tokens"],
        return_token_ids=True,
    )
    return [i async for chunk in stub.Generate(request, timeout=60) for i in chunk.token_ids]


async def test_http_streams_are_the_engines(cluster: RunningCluster, cases: MakeCases):
    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=60) as client:
        for case in cases(6, seed=1, max_tokens=(1, 60)):
            assert tuple(await stream_ids(client, case)) == case.expected


async def test_grpc_streams_are_the_engines(cluster: RunningCluster, cases: MakeCases):
    async with grpc.aio.insecure_channel(cluster.grpc_address) as channel:
        stub = glm_pb2_grpc.GlmStub(channel)
        for case in cases(6, seed=1, max_tokens=(1, 60)):
            assert tuple(await grpc_ids(stub, case)) == case.expected


async def test_tokens_come_while_they_are_made(cluster: RunningCluster):
    """The first is here while the engine is at the others, and these come in many pieces."""
    case = Case((5, 6, 7), {"max_tokens": 900, "temperature": 0, "ignore_eos": True}, expected=())

    def at_work() -> bool:
        return bool(cluster.ask("loads")[0]["num_running"] == 1)

    async with (
        httpx.AsyncClient(base_url=cluster.http_url, timeout=60) as client,
        aclosing(events(client, case.token_by_token())) as chunks,
    ):
        await anext(chunks)
        await asyncio.to_thread(eventually, at_work, "the engine is at work", timeout_s=30)
        for _ in range(50):
            await anext(chunks)


async def test_64_streams_at_once_have_the_ids_they_get_alone(cluster: RunningCluster, cases: MakeCases):
    many = cases(64, seed=3, max_tokens=(1, 60))
    for case, ids in zip(many, await all_at_once(cluster, many), strict=True):
        assert tuple(ids) == case.expected


async def test_64_grpc_streams_on_one_channel(cluster: RunningCluster, cases: MakeCases):
    many = cases(64, seed=3, max_tokens=(1, 60))
    async with grpc.aio.insecure_channel(cluster.grpc_address) as channel:
        stub = glm_pb2_grpc.GlmStub(channel)
        for case, ids in zip(many, await asyncio.gather(*(grpc_ids(stub, c) for c in many)), strict=True):
            assert tuple(ids) == case.expected


async def test_arrivals_at_once_are_few_submissions(cluster: RunningCluster, cases: MakeCases):
    """64 requests that come while the engine is busy reach it together, as the exported metric tells.

    Stopped, it is busy for as long as they need to come: how fast it is does not matter.
    """

    def settled() -> float:
        """The metric, once it has stopped moving: it is exported now and then."""
        seen = [cluster.ask("num_submissions")]
        while len(seen) < 5 or len(set(seen[-5:])) > 1:
            time.sleep(EXPORT_S)
            seen.append(cluster.ask("num_submissions"))
        return seen[-1]

    (rank,) = cluster.processes(RANK)
    before = await asyncio.to_thread(settled)
    many = cases(64, seed=3, max_tokens=(1, 60))
    rank.suspend()
    try:
        answers = asyncio.create_task(all_at_once(cluster, many))
        await asyncio.sleep(8)
        assert not answers.done()
    finally:
        rank.resume()
    await answers
    await asyncio.to_thread(eventually, lambda: cluster.ask("num_submissions") > before, "the metric is exported")
    after = await asyncio.to_thread(settled)
    assert after - before <= 8


async def test_200_cancelled_streams_give_every_block_back(cluster: RunningCluster, cases: MakeCases):
    (long,) = cases(1, seed=6, max_tokens=(600, 600))

    async def leave_after(client: httpx.AsyncClient, num_chunks: int) -> None:
        stream = events(client, long.token_by_token())
        for _ in range(num_chunks):
            await anext(stream)
        await stream.aclose()

    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=120, limits=limits) as client:
        await asyncio.gather(*(leave_after(client, 1 + i % 5) for i in range(200)))

    def idle() -> bool:
        (load,) = cluster.ask("loads")
        return load["num_running"] == load["num_waiting"] == 0 and load["num_free_blocks"] == load["num_blocks"]

    eventually(idle, "every block is free")


async def test_a_bad_request_harms_nobody(cluster: RunningCluster, cases: MakeCases):
    (case,) = cases(1, seed=5, max_tokens=(200, 200))
    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=60) as client:
        stream = asyncio.create_task(stream_ids(client, case))
        for bad in ({"prompt": [5] * 5000}, {"prompt": [10**6]}, {"temperature": -1}, {"nonsense": 1}, {"prompt": []}):
            response = await client.post("/v1/completions", json={**case.body, **bad})
            assert response.status_code == 400, (bad, response.text)
        assert tuple(await stream) == case.expected


async def test_health_on_both_wires(cluster: RunningCluster):
    assert cluster.healthy()
    async with grpc.aio.insecure_channel(cluster.grpc_address) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_killed_group_comes_back_and_health_tells(cluster: RunningCluster, cases: MakeCases):
    """The only rank there is: the stream waits for the next group and goes on with the same ids."""
    (case,) = cases(1, seed=6, max_tokens=(600, 600))
    (rank,) = cluster.processes(RANK)
    begun = AtToken(5, rank.kill)
    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=120) as client:
        stream = asyncio.create_task(stream_ids(client, case.token_by_token(), on_tokens=begun))
        await asyncio.to_thread(eventually, lambda: not cluster.healthy(), "health turns red", timeout_s=30)
        begun.check()
        assert not stream.done()
        assert tuple(await stream) == case.expected
    await asyncio.to_thread(eventually, cluster.healthy, "health turns green")
    assert rank.pid not in [p.pid for p in cluster.processes(RANK)]
