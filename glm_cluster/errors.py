"""Every error a user can meet, each with its HTTP and gRPC status.

GlmError
├── ConfigError            a setting is wrong                    (start-up: a sentence and exit 2)
│   └── CheckpointError    a checkpoint file or tensor is wrong  (start-up)
├── InvalidRequest         the request can never succeed         400 INVALID_ARGUMENT
│   ├── ContextExceeded    more tokens than the model takes      400 INVALID_ARGUMENT
│   ├── ModelNotFound      the named model is not served         404 NOT_FOUND
│   ├── BodyTooLarge       more bytes than one may send          413 RESOURCE_EXHAUSTED
│   ├── HeadersTooLarge    more headers than one may send        431 RESOURCE_EXHAUSTED
│   └── BodyTooSlow        the body did not come in time         408 DEADLINE_EXCEEDED
├── Unauthenticated        no API key, or an unknown one         401 UNAUTHENTICATED
├── PermissionDenied       the key's bearer may not do that      403 PERMISSION_DENIED
├── Overloaded             no room now, try again later          429 RESOURCE_EXHAUSTED
│   └── RateLimited        the key's budget is used up           429 RESOURCE_EXHAUSTED
├── DeadlineExceeded       the request ran out of its time       504 DEADLINE_EXCEEDED
├── EngineUnavailable      no replica can take the request now   503 UNAVAILABLE
└── InternalError          a defect of ours                      500 INTERNAL

`raise` happens at boundaries, with a sentence that says what to do; the wire layers map a class to its status once.
"""

from typing import Self


class GlmError(Exception):
    """Base of the tree. `code` is the machine-readable word clients may switch on."""

    http_status: int = 500
    grpc_status: str = "INTERNAL"
    code: str = "internal_error"
    kind: str = "server_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling between Ray processes with `param` intact."""
        return (_rebuild, (type(self), self.message, self.param))


def _rebuild(cls: type[GlmError], message: str, param: str | None) -> GlmError:
    return cls(message, param=param)


_MESSAGE_BYTES = 2048  # three times that in a gRPC trailer, which holds 8 KiB
_PARAM_BYTES = 256


def clipped(text: str, num_bytes: int) -> str:
    """The beginning of a long text, at a whole character."""
    if len(text) * 4 <= num_bytes or len(encoded := text[:num_bytes].encode("utf-8", "replace")) < num_bytes:
        return text
    return encoded[: num_bytes - 3].decode("utf-8", "ignore") + "…"


class ConfigError(GlmError):
    """A setting is unknown, of the wrong type, or impossible together with another."""

    code = "config_error"


class CheckpointError(ConfigError):
    """A checkpoint is missing a file or tensor, or holds one of the wrong shape or dtype. Names both."""

    code = "checkpoint_error"


class InvalidRequest(GlmError):
    """The request can never succeed as written; `param` names the field at fault where there is one."""

    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    code = "invalid_request"
    kind = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        """Keep short what may quote a client at length: an answer's headers are its place over gRPC."""
        super().__init__(clipped(message, _MESSAGE_BYTES), param=param and clipped(param, _PARAM_BYTES))


class ContextExceeded(InvalidRequest):
    """The prompt, or it and what is asked for together, has more tokens than the model takes."""

    code = "context_length_exceeded"  # OpenAI's, as the words are: clients that make room by themselves go by them

    @classmethod
    def of(cls, num_tokens: int, limit: int, *, parts: str, advice: str, param: str) -> Self:
        """The error for `num_tokens` where `limit` go; `parts` says where they are."""
        return cls(
            f"{param}: This model's maximum context length is {limit} tokens. "
            f"However, you requested {num_tokens} tokens {parts}. {advice}.",
            param=param,
        )


class ModelNotFound(InvalidRequest):
    """The request names a model that this cluster does not serve."""

    http_status = 404
    grpc_status = "NOT_FOUND"
    code = "model_not_found"


class BodyTooLarge(InvalidRequest):
    """The request has more bytes than this cluster reads."""

    http_status = 413
    grpc_status = "RESOURCE_EXHAUSTED"
    code = "body_too_large"


class HeadersTooLarge(InvalidRequest):
    """The request has more headers, or longer ones, than this cluster reads."""

    http_status = 431
    grpc_status = "RESOURCE_EXHAUSTED"
    code = "headers_too_large"


class BodyTooSlow(InvalidRequest):
    """The request's body did not come in within its time."""

    http_status = 408
    grpc_status = "DEADLINE_EXCEEDED"
    code = "body_too_slow"


class Unauthenticated(GlmError):
    """The request has no API key, or one that is not in the file of keys."""

    http_status = 401
    grpc_status = "UNAUTHENTICATED"
    code = "invalid_api_key"
    kind = "authentication_error"


class PermissionDenied(GlmError):
    """The key is known, and its bearer may not do this."""

    http_status = 403
    grpc_status = "PERMISSION_DENIED"
    code = "permission_denied"
    kind = "permission_error"


class Overloaded(GlmError):
    """Too many requests are queued; the client may try again after `retry_after_s`."""

    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    code = "overloaded"
    retry_after_s: float = 1.0


class RateLimited(Overloaded):
    """The key's bearer has used a budget up; some of it is back after `retry_after_s`."""

    code = "rate_limit_exceeded"
    kind = "rate_limit_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(GlmError):
    """The request did not finish within its time limit."""

    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"
    code = "deadline_exceeded"


class EngineUnavailable(GlmError):
    """No engine can take the request now (a group died or is starting). Safe to re-enter elsewhere."""

    http_status = 503
    grpc_status = "UNAVAILABLE"
    code = "engine_unavailable"


class InternalError(GlmError):
    """A defect of ours; details stay in the log."""
