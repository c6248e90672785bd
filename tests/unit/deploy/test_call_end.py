"""A failed call's status and trailers, as Serve's two entrances want them left."""

from collections.abc import AsyncGenerator

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from grpc import StatusCode

from glm_cluster.api.calls import status_of
from glm_cluster.deploy import call_end
from glm_cluster.deploy.call_end import replies, reply
from glm_cluster.errors import InvalidRequest


class Context:
    """What a call leaves behind."""

    def __init__(self) -> None:
        self.status: StatusCode | None = None
        self.trailers: list[tuple[str, str | bytes]] = []

    def code(self) -> StatusCode | None:
        return self.status

    def set_code(self, code: StatusCode) -> None:
        self.status = code

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None:
        self.trailers = trailing_metadata

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        return []


async def answers(request: StringValue, context: Context) -> StringValue:
    return request


async def refuses(request: StringValue, context: Context) -> StringValue:
    with status_of(context):
        raise InvalidRequest("no", param="value")


async def streams_then_refuses(request: StringValue, context: Context) -> AsyncGenerator[StringValue, None]:
    with status_of(context):
        yield request
        raise InvalidRequest("no more", param="value")


async def fails(request: StringValue, context: Context) -> StringValue:
    raise InvalidRequest("a status nobody set")


async def breaks(request: StringValue, context: Context) -> StringValue:
    context.set_code(StatusCode.INTERNAL)
    raise ZeroDivisionError


@pytest.fixture(params=[True, False], ids=["direct", "proxied"])
def direct(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(call_end, "RAY_SERVE_ENABLE_DIRECT_INGRESS", request.param)
    return bool(request.param)


async def test_an_answer_goes_through(direct: bool):
    assert await reply(answers, StringValue(value="a"), Context()) == StringValue(value="a")


async def test_a_refusal_returns_where_returning_sends_its_trailers(direct: bool):
    context = Context()
    if direct:
        assert await reply(refuses, StringValue(), context) == Empty()
    else:
        with pytest.raises(InvalidRequest):
            await reply(refuses, StringValue(), context)
    assert context.code() == StatusCode.INVALID_ARGUMENT
    assert [name for name, _ in context.trailers] == ["grpc-status-details-bin"]


async def test_a_stream_that_fails_ends_the_same_way(direct: bool):
    context = Context()
    got = []

    async def read() -> None:
        async for message in replies(streams_then_refuses, StringValue(value="a"), context):
            got.append(message)

    if direct:
        await read()
    else:
        with pytest.raises(InvalidRequest):
            await read()
    assert got == [StringValue(value="a")]
    assert context.code() == StatusCode.INVALID_ARGUMENT


async def test_what_has_no_status_is_never_taken_for_a_success(direct: bool):
    with pytest.raises(InvalidRequest):
        await reply(fails, StringValue(), Context())


async def test_a_fault_of_ours_is_not_hidden(direct: bool):
    with pytest.raises(ZeroDivisionError):
        await reply(breaks, StringValue(), Context())
