"""How a gRPC call that failed ends in Ray Serve. Knows Serve's two entrances, nothing of what is called.

A front that clients reach directly sends trailers (google.rpc's details, retry-after) only of a method that returns;
what it returns is not read then. Serve's proxies take the status of a call from what comes with a message: a stream
that returns without one has succeeded to them.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpc import StatusCode

from glm_cluster.api.calls import CallContext
from glm_cluster.api.servicer import Received
from glm_cluster.errors import GlmError


class EndedCall(CallContext, Protocol):
    """A call's context, which may have a status by now."""

    def code(self) -> StatusCode | int | None: ...


async def reply(
    method: Callable[[Any, Any], Awaitable[Message]], request: Received | Message, context: EndedCall
) -> Message:
    """What the method answers; of a call that failed with a status, a message that says nothing."""
    try:
        return await method(request, context)
    except GlmError:
        if not context.code():
            raise
        return Empty()


async def replies(
    method: Callable[[Any, Any], AsyncGenerator[Message, None]], request: Received | Message, context: EndedCall
) -> AsyncGenerator[Message, None]:
    """What the method streams; a stream that failed with a status ends where the client is its reader."""
    try:
        async with aclosing(method(request, context)) as messages:
            async for message in messages:
                yield message
    except GlmError:
        if not (isinstance(request, Received) and request.is_direct and context.code()):
            raise
