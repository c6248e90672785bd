"""Requests come as bytes, which nobody opens before their sender and their length are known to be right."""

import grpc
import pytest

from glm_cluster.api import calls
from glm_cluster.api.access import Access
from glm_cluster.api.callers import Callers
from glm_cluster.api.grpc import GlmGrpc
from glm_cluster.api.proto import glm_pb2
from glm_cluster.api.servicer import GLM
from glm_cluster.config import Limits

GARBLED = b"\x0a\xff"


def unopened(request, kind):
    raise AssertionError("it was opened")


async def refusal(channel, name: str, content: bytes) -> tuple[grpc.StatusCode, str]:
    method = GLM.methods_by_name[name]
    call = (channel.unary_stream if method.server_streaming else channel.unary_unary)(f"/{GLM.full_name}/{name}")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call(content).read() if method.server_streaming else call(content))
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize("name", [method.name for method in GLM.methods])
async def test_bytes_that_are_no_message_are_the_clients_fault(channel, name):
    code, details = await refusal(channel, name, GARBLED)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert GLM.methods_by_name[name].input_type.full_name in details


@pytest.mark.parametrize("name", ["Chat", "Generate"])
async def test_a_strangers_message_is_not_opened(service, server, tally, served, tmp_path, monkeypatch, name):
    (tmp_path / "keys").write_text("[]")
    monkeypatch.setattr(calls, "_parsed", unopened)
    access = Access(meters=tally, callers=Callers(tmp_path / "keys"))
    async with served(GlmGrpc(service, server, tally, access)) as channel:
        assert (await refusal(channel, name, GARBLED))[0] == grpc.StatusCode.UNAUTHENTICATED


async def test_a_long_message_is_not_opened(service, server, tally, served, monkeypatch):
    monkeypatch.setattr(calls, "_parsed", unopened)
    access = Access(meters=tally, limits=Limits(max_body_bytes=1000))
    long = glm_pb2.GenerateRequest(model="tiny", text="a" * 1001).SerializeToString()
    async with served(GlmGrpc(service, server, tally, access)) as channel:
        assert (await refusal(channel, "Generate", long))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
