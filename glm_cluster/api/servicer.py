"""The methods of glm_cluster.v1.Glm as a gRPC server takes them: requests reach them as the bytes that were sent.

The generated function has the server parse a message before anyone asks who sends it, and 256 MiB of bytes become
gigabytes of message. Ray Serve calls this one instead; `calls` opens the bytes.
"""

from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from glm_cluster.api.proto import glm_pb2

GLM = glm_pb2.DESCRIPTOR.services_by_name["Glm"]


def add_glm_to_server(servicer: Any, server: Any) -> None:
    """Let a gRPC server of any kind answer with the methods of `servicer`, which get bytes and return messages."""
    handlers = {method.name: _handler(method, getattr(servicer, method.name)) for method in GLM.methods}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(GLM.full_name, handlers),))
    server.add_registered_method_handlers(GLM.full_name, handlers)


def _handler(method: Any, behavior: Any) -> Any:
    kind = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
    return kind(behavior, response_serializer=GetMessageClass(method.output_type).SerializeToString)
