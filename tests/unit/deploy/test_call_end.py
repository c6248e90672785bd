"""A failed call's status and trailers, as Serve's two entrances want them left."""

import pickle
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from grpc import StatusCode

from glm_cluster.api.calls import status_of
from glm_cluster.api.servicer import Received
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


def received(*, directly: bool) -> Received:
    return Received.here(b"") if directly else replace(Received.here(b""), process=b"a proxy")


async def test_an_answer_goes_through():
    assert await reply(answers, StringValue(value="a"), Context()) == StringValue(value="a")


@pytest.mark.parametrize("directly", [True, False])
async def test_a_refusal_is_a_message_that_says_nothing(directly: bool):
    context = Context()
    assert await reply(refuses, received(directly=directly), context) == Empty()
    assert context.code() == StatusCode.INVALID_ARGUMENT
    assert [name for name, _ in context.trailers] == ["grpc-status-details-bin"]


async def told(request: Received | StringValue, context: Context) -> list[object]:
    return [message async for message in replies(streams_then_refuses, request, context)]


async def test_a_refused_stream_ends_where_the_client_reads_it():
    context, request = Context(), received(directly=True)
    assert await told(request, context) == [request]
    assert context.code() == StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("request_", [received(directly=False), StringValue()])
async def test_to_a_proxy_a_refused_stream_is_no_success(request_: Received | StringValue):
    """It may come through one at any time: HAProxy sends calls to Serve's own while no front is up."""
    context = Context()
    with pytest.raises(InvalidRequest):
        await told(pickle.loads(pickle.dumps(request_)), context)
    assert context.code() == StatusCode.INVALID_ARGUMENT


async def test_what_has_no_status_is_never_taken_for_a_success():
    with pytest.raises(InvalidRequest):
        await reply(fails, received(directly=True), Context())


async def test_a_fault_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        await reply(breaks, received(directly=True), Context())
