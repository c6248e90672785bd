"""How a gRPC call that failed ends in Ray Serve. Knows Serve's two entrances, nothing of what is called.

Serve's direct ingress sends trailers (google.rpc's details, retry-after) only of a method that returns; what it returns
is not read then. Serve's own proxy takes a method that returns for one that succeeded, unless it sends a message.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Protocol

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpc import StatusCode
from ray.serve._private.constants import RAY_SERVE_ENABLE_DIRECT_INGRESS

from glm_cluster.api.calls import CallContext
from glm_cluster.errors import GlmError


class EndedCall(CallContext, Protocol):
    """A call's context, which may have a status by now."""

    def code(self) -> StatusCode | int | None: ...


async def reply(method: Callable[[Any, Any], Awaitable[Message]], request: Message, context: EndedCall) -> Message:
    """What the method answers; of a call that failed, nothing, where that is how its trailers are sent."""
    with _ended_as_set(context):
        return await method(request, context)
    return Empty()


async def replies(
    method: Callable[[Any, Any], AsyncGenerator[Message, None]], request: Message, context: EndedCall
) -> AsyncGenerator[Message, None]:
    """The same of a method that streams."""
    with _ended_as_set(context):
        async with aclosing(method(request, context)) as messages:
            async for message in messages:
                yield message


@contextmanager
def _ended_as_set(context: EndedCall) -> Iterator[None]:
    """Let a call end with the status that its context has been given; an error without one goes on up."""
    try:
        yield
    except GlmError:
        if not (RAY_SERVE_ENABLE_DIRECT_INGRESS and context.code()):
            raise
