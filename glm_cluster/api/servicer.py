"""The methods of glm_cluster.v1.Glm as a gRPC server takes them: requests reach them as the bytes that were sent.

The generated function has the server parse a message before anyone asks who sends it, and 256 MiB of bytes become
gigabytes of message. Ray Serve calls this one instead; `calls` opens the bytes.
"""

import secrets
from dataclasses import dataclass
from typing import Any, Self

import grpc
from google.protobuf.message_factory import GetMessageClass

from glm_cluster.api.proto import glm_pb2

GLM = glm_pb2.DESCRIPTOR.services_by_name["Glm"]
_HERE = secrets.token_bytes(8)


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it was sent, and the process that it was sent to."""

    content: bytes
    process: bytes

    @classmethod
    def here(cls, content: bytes) -> Self:
        """One that this process has received."""
        return cls(content, _HERE)

    @property
    def is_direct(self) -> bool:
        """Whether no proxy process stands between the client and this one."""
        return self.process == _HERE


def add_glm_to_server(servicer: Any, server: Any) -> None:
    """Let a gRPC server of any kind answer with the methods of `servicer`, each of which gets a `Received`."""
    handlers = {method.name: _handler(method, getattr(servicer, method.name)) for method in GLM.methods}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(GLM.full_name, handlers),))
    server.add_registered_method_handlers(GLM.full_name, handlers)


def _handler(method: Any, behavior: Any) -> Any:
    kind = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
    serialize = GetMessageClass(method.output_type).SerializeToString
    return kind(behavior, request_deserializer=Received.here, response_serializer=serialize)
