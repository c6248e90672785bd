"""The gate in front of every HTTP route: headers of a bearable size, and a caller who may call. Denies by default.

Knows the scope as it came over the wire, before anything is decoded or routed. Refuses to know the routes behind it.
"""

import json
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glm_cluster.api.access import Access
from glm_cluster.api.callers import Caller
from glm_cluster.api.headers import CLIENTS_NAME
from glm_cluster.api.replies import error_body
from glm_cluster.errors import GlmError, HeadersTooLarge, Unauthenticated

CALLER = "glm_cluster.caller"
OPEN_PATHS = frozenset({"/health", "/ready", "/version"})
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 << 10
_CLOSED = 1008  # a websocket's code for a policy


class Gate:
    """An ASGI middleware that lets nobody by unseen."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": _CLOSED})

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = Caller.unknown(_header(scope, CLIENTS_NAME))
        out = _named(send, caller)
        try:
            _check_headers(scope)
            if not _is_open(scope):
                given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
                caller = self._access.callers.identify(given, caller)
        except GlmError as error:
            await _refuse(out, error, with_body=scope["method"] != "HEAD")
            return
        await self._app({**scope, CALLER: caller}, receive, out)


def caller_of(scope: Scope) -> Caller:
    """Whom the gate let in."""
    return cast(Caller, scope[CALLER])


def _is_open(scope: Scope) -> bool:
    """Whether anyone may ask this: the path as it came and the path that is routed are both one of the open ones."""
    path = scope["path"]
    return path in OPEN_PATHS and scope.get("raw_path", path.encode()) == path.encode()


def _check_headers(scope: Scope) -> None:
    headers = scope["headers"]
    if len(headers) > MAX_HEADERS:
        raise HeadersTooLarge(f"{len(headers)} headers; send at most {MAX_HEADERS}")
    if (num_bytes := sum(len(name) + len(value) for name, value in headers)) > MAX_HEADER_BYTES:
        raise HeadersTooLarge(f"the headers hold {num_bytes} bytes; send at most {MAX_HEADER_BYTES}")


def _header(scope: Scope, wanted: bytes) -> str | None:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name.lower() == wanted), None)


def _named(send: Send, caller: Caller) -> Send:
    """Put our name for the request, and the client's own, on the response."""
    ids = [(b"x-request-id", caller.request_id.encode())]
    if caller.client_request_id is not None:
        ids.append((CLIENTS_NAME, caller.client_request_id.encode()))

    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *ids]}
        await send(message)

    return named


async def _refuse(send: Send, error: GlmError, *, with_body: bool) -> None:
    body = json.dumps(error_body(error), separators=(",", ":")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body if with_body else b""})
