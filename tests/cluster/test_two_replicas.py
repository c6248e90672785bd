"""Two replicas: a killed one is not noticed by any stream, prefixes stay at home, bursts arrive in batches."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest
from support.cluster import REPLICA, AtToken, Case, RunningCluster, all_at_once, eventually

from glm_cluster.api.proto import glm_pb2, glm_pb2_grpc

MakeCases = Callable[..., list[Case]]


@pytest.fixture(scope="module")
def cluster(start_cluster: Callable[..., RunningCluster], settings: Callable[..., dict[str, Any]]) -> RunningCluster:
    return start_cluster(settings(min_replicas=2, max_replicas=2))


async def test_a_prefix_is_computed_once(cluster: RunningCluster):
    """Requests that share a long prompt go to the replica that has it, although the other one is as idle."""
    prompt = list(range(2, 250)) * 2
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 2, "temperature": 0}
    cached = []
    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=60) as client:
        for _ in range(8):
            reply = (await client.post("/v1/completions", json=body)).json()
            cached.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[0] == 0
    assert min(cached[1:]) > 400


async def test_both_replicas_work(cluster: RunningCluster, cases: MakeCases):
    many = [case.token_by_token() for case in cases(16, seed=20, max_tokens=(300, 400))]
    streams = asyncio.create_task(all_at_once(cluster, many))

    def least() -> int:
        return min(load["num_running"] + load["num_waiting"] for load in cluster.ask("loads"))

    await asyncio.to_thread(eventually, lambda: streams.done() or least() >= 4, "both replicas hold a share")
    assert not streams.done()
    await streams


async def test_a_killed_replica_costs_no_token(cluster: RunningCluster, cases: MakeCases):
    many = cases(16, seed=20, max_tokens=(300, 400))
    blow = AtToken(800, cluster.processes(REPLICA)[0].kill)
    for case, ids in zip(many, await all_at_once(cluster, many, on_tokens=blow), strict=True):
        assert tuple(ids) == case.expected
    blow.check()
    await asyncio.to_thread(
        eventually,
        lambda: len(cluster.processes(REPLICA)) == cluster.ask("num_replicas") == num_known(cluster) == 2,
        "a second replica is back",
    )


def num_known(cluster: RunningCluster) -> int:
    """The replicas that the router would choose among now."""
    with grpc.insecure_channel(cluster.grpc_address) as channel:
        (model,) = glm_pb2_grpc.GlmStub(channel).GetLoad(glm_pb2.GetLoadRequest(), timeout=30).models
    return int(model.num_replicas)
