"""An error in gRPC's richer error model: what `grpc_status.rpc_status.from_call` reads. Knows no call.

The messages are google.rpc's (AIP-193): why, in the word that HTTP has as `code`; which field; when to try again.
"""

import math

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from glm_cluster.errors import GlmError, Overloaded

DOMAIN = "glm_cluster"


def status_details(error: GlmError, message: str) -> bytes:
    """A serialised google.rpc.Status; `message` is the call's, which clients compare with it."""
    code: int = StatusCode[error.grpc_status].value[0]
    status = Status(code=code, message=message)
    for detail in _details(error):
        status.details.add().Pack(detail)
    return bytes(status.SerializeToString())


def _details(error: GlmError) -> list[Message]:
    details: list[Message] = [ErrorInfo(reason=error.code.upper(), domain=DOMAIN)]
    if error.param is not None:
        details.append(BadRequest(field_violations=[BadRequest.FieldViolation(field=error.param)]))
    if isinstance(error, Overloaded):
        details.append(RetryInfo(retry_delay=Duration(seconds=math.ceil(error.retry_after_s))))
    return details
