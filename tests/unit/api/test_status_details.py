"""An error's details over gRPC: why, which field, when to try again."""

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from glm_cluster.api.proto import glm_pb2
from glm_cluster.errors import InternalError, InvalidRequest, Overloaded


async def refusal(call) -> tuple[grpc.aio.AioRpcError, Status]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    trailers = dict(caught.value.trailing_metadata())
    status = Status.FromString(trailers["grpc-status-details-bin"])
    assert (status.code, status.message) == (caught.value.code().value[0], caught.value.details())
    return caught.value, status


def unpacked(status: Status, kind):
    found = [kind() for detail in status.details if detail.Is(kind.DESCRIPTOR)]
    for one, detail in zip(found, (d for d in status.details if d.Is(kind.DESCRIPTOR)), strict=True):
        detail.Unpack(one)
    return found


def request(**fields) -> glm_pb2.GenerateRequest:
    return glm_pb2.GenerateRequest(model="tiny", text="a!", **fields)


async def test_a_bad_field_is_named(stub):
    _, status = await refusal(stub.Generate(request(max_tokens=-1)))
    (bad,) = unpacked(status, BadRequest)
    assert [violation.field for violation in bad.field_violations] == ["max_tokens"]
    (info,) = unpacked(status, ErrorInfo)
    assert (info.reason, info.domain) == (InvalidRequest.code.upper(), "glm_cluster")
    assert unpacked(status, RetryInfo) == []


async def test_a_full_engine_says_when_to_try_again(stub, echo, monkeypatch):
    async def generate(request):
        raise Overloaded("1024 requests are waiting here; try later")
        yield

    monkeypatch.setattr(echo, "generate", generate)
    error, status = await refusal(stub.Generate(request()))
    (retry,) = unpacked(status, RetryInfo)
    assert retry.retry_delay.seconds == int(dict(error.trailing_metadata())["retry-after"]) == 1
    assert unpacked(status, BadRequest) == []


async def test_a_defect_tells_no_secret(stub, echo):
    echo.error = ZeroDivisionError("secret")
    error, status = await refusal(stub.Generate(glm_pb2.GenerateRequest(model="tiny", text="a~")))
    assert "secret" not in str(status)
    assert unpacked(status, ErrorInfo)[0].reason == InternalError.code.upper()
    assert error.code() == grpc.StatusCode.INTERNAL


async def test_long_words_fit_into_the_trailers(stub):
    error, status = await refusal(stub.Generate(glm_pb2.GenerateRequest(model="模" * 3000, text="a")))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert len(status.message.encode()) <= 1024
