"""What we need of a gRPC call, and how an error leaves through it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from grpc import StatusCode

from glm_cluster.errors import GlmError


class CallContext(Protocol):
    """The part of a call's context we use; Ray Serve's and grpc.aio's both have it."""

    def set_code(self, code: StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...


@contextmanager
def status_of(context: CallContext) -> Iterator[None]:
    """Put the status of a GlmError on the call before it goes on up."""
    try:
        yield
    except GlmError as error:
        context.set_code(StatusCode[error.grpc_status])
        context.set_details(error.message)
        raise
