"""What we need of a gRPC call: who makes it, and how an error leaves through it."""

import inspect
import math
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import wraps
from typing import Any, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode

from glm_cluster.api.access import Access
from glm_cluster.api.callers import Caller
from glm_cluster.api.exchange import body_too_large
from glm_cluster.api.servicer import GLM, Received
from glm_cluster.api.status_details import status_details
from glm_cluster.errors import GlmError, InvalidRequest, Overloaded, clipped

_MESSAGE_BYTES = 1024  # trailers hold 8 KiB, in which a byte takes up to three, and more for the details
_REQUESTS: dict[str, type[Message]] = {method.name: GetMessageClass(method.input_type) for method in GLM.methods}

G = TypeVar("G", bound="Guarded")


class CallContext(Protocol):
    """The part of a call's context we use; Ray Serve's and grpc.aio's both have it."""

    def set_code(self, code: StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None: ...

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None: ...


class KnownCall:
    """A call by someone who may make it."""

    def __init__(self, context: CallContext, caller: Caller) -> None:
        self.caller = caller
        self._context = context

    def set_code(self, code: StatusCode) -> None:
        """As the call's context does."""
        self._context.set_code(code)

    def set_details(self, details: str) -> None:
        """As the call's context does."""
        self._context.set_details(details)

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None:
        """As the call's context does."""
        self._context.set_trailing_metadata(trailing_metadata)

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None:
        """As the call's context does."""
        return self._context.invocation_metadata()


class Guarded(Protocol):
    """Whose methods ask who calls."""

    access: Access


def guarded(*names: str) -> Callable[[type[G]], type[G]]:
    """Have each of these methods of a class run only for a caller who may call; they get a `KnownCall`."""

    def guard(cls: type[G]) -> type[G]:
        for name in names:
            method = getattr(cls, name)
            streams = inspect.isasyncgenfunction(method)
            setattr(cls, name, (_guarded_stream if streams else _guarded)(method, _REQUESTS[name]))
        return cls

    return guard


def _guarded(method: Any, kind: type[Message]) -> Any:
    @wraps(method)
    async def call(self: Guarded, request: Received | Message, context: CallContext) -> object:
        message, known = _opened(self.access, request, kind, context)
        return await method(self, message, known)

    return call


def _guarded_stream(method: Any, kind: type[Message]) -> Any:
    @wraps(method)
    async def call(self: Guarded, request: Received | Message, context: CallContext) -> AsyncGenerator[object, None]:
        message, known = _opened(self.access, request, kind, context)
        async with aclosing(method(self, message, known)) as messages:
            async for one in messages:
                yield one

    return call


def _opened(
    access: Access, request: Received | Message, kind: type[Message], context: CallContext
) -> tuple[Message, KnownCall]:
    """The message that was sent, which is not looked into before its sender and its length are known to be right."""
    with status_of(context):
        caller = _identify(access, context)
        num_bytes = len(request.content) if isinstance(request, Received) else request.ByteSize()
        if num_bytes > access.limits.max_body_bytes:
            raise body_too_large(access.limits.max_body_bytes)
        message = _parsed(request.content, kind) if isinstance(request, Received) else request
        return message, KnownCall(context, caller)


def _parsed(content: bytes, kind: type[Message]) -> Message:
    try:
        return kind.FromString(content)
    except DecodeError as error:
        name = kind.DESCRIPTOR.full_name
        raise InvalidRequest(f"the bytes are no {name}; use the stubs of this release, or reflection") from error


def _identify(access: Access, context: CallContext) -> Caller:
    given = [(name, _bytes(value)) for name, value in context.invocation_metadata() or ()]
    names = {name: value.decode("latin-1") for name, value in reversed(given)}
    caller = Caller.unknown(names.get("x-client-request-id", names.get("x-request-id")))
    return access.callers.identify([value for name, value in given if name == "authorization"], caller)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


@contextmanager
def status_of(context: CallContext) -> Iterator[None]:
    """Put the status of a GlmError on the call before it goes on up."""
    try:
        yield
    except GlmError as error:
        message = clipped(error.message, _MESSAGE_BYTES)
        trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status_details(error, message))]
        if isinstance(error, Overloaded):
            trailers.append(("retry-after", str(math.ceil(error.retry_after_s))))
        context.set_trailing_metadata(trailers)
        context.set_code(StatusCode[error.grpc_status])
        context.set_details(message)
        raise
