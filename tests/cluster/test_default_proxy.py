"""Everything also works behind Serve's own proxy: the flags are set off before Ray starts."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc.status_pb2 import Status
from support.checkpoints import edit_json
from support.cluster import RANK, AtToken, Case, RunningCluster, all_at_once, events, eventually

from glm_cluster.api.proto import glm_pb2, glm_pb2_grpc

LONGEST = 16_384  # so many tokens take longer than what waits for the end of a cancelled stream


async def test_streams_cancellation_and_failover(
    start_cluster: Callable[..., RunningCluster],
    settings: Callable[..., dict[str, Any]],
    cases: Callable[..., list[Case]],
    tiny: Path,
    tmp_path: Path,
):
    model = shutil.copytree(tiny, tmp_path / "model")
    edit_json(model / "config.json", max_position_embeddings=LONGEST)
    cluster = start_cluster(settings(model=str(model), kv_cache_bytes=128 << 20), RAY_SERVE_ENABLE_HA_PROXY="0")
    assert not cluster.processes("haproxy")
    many = cases(8, seed=10, max_tokens=(1, 60))
    for case, ids in zip(many, await all_at_once(cluster, many), strict=True):
        assert tuple(ids) == case.expected

    async with grpc.aio.insecure_channel(cluster.grpc_address) as channel:
        ids = glm_pb2.TokenIds(ids=many[0].prompt)
        request = glm_pb2.GenerateRequest(model="tiny", token_ids=ids, max_tokens=5)
        chunks = [chunk async for chunk in glm_pb2_grpc.GlmStub(channel).Generate(request, timeout=60)]
        assert chunks[-1].usage.completion_tokens <= 5
        await refusals_are_told(glm_pb2_grpc.GlmStub(channel))

    await cancelled_streams_end(cluster)

    (case,) = cases(1, seed=6, max_tokens=(600, 600))
    blow = AtToken(5, cluster.processes(RANK)[0].kill)
    (ids,) = await all_at_once(cluster, [case.token_by_token()], on_tokens=blow)
    blow.check()
    assert tuple(ids) == case.expected


async def refusals_are_told(glm: glm_pb2_grpc.GlmStub) -> None:
    nothing = glm_pb2.GenerateRequest(model="tiny", text="")
    nobody = glm_pb2.ChatRequest(model="nobody", messages=[glm_pb2.ChatMessage(role=glm_pb2.ROLE_USER, content="a")])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(glm.Generate(nothing, timeout=60)))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await glm.Chat(nobody, timeout=60)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    status = Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    assert status.message == caught.value.details()


async def cancelled_streams_end(cluster: RunningCluster) -> None:
    case = Case((5, 6, 7), {"max_tokens": LONGEST - 3, "ignore_eos": True}, expected=()).token_by_token()
    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=60) as client:
        stream = events(client, case)
        await anext(stream)
        await stream.aclose()
    await asyncio.to_thread(
        eventually, lambda: cluster.ask("loads")[0]["num_running"] == 0, "the engine is idle", timeout_s=10
    )
