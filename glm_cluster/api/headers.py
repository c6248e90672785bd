"""What Serve never gets to see of a request's headers: clients' orders to it, and values that it cannot read.

Knows the headers that Serve acts on. Refuses to know what headers mean to us: that is the gate's business.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from glm_cluster.api.callers import safe_id

_ORDERS = frozenset(
    {
        b"x-request-timeout-seconds",  # would end a request in a way of Serve's own
        b"x-request-disconnect-disabled",  # would have us answer a client who has gone
        b"serve-multiplexed-model-id",
        b"x-session-id",
    }
)
_REQUEST_ID = b"x-request-id"  # Serve fails on one that is not UTF-8, and shows any other again


class CleanHeaders:
    """An ASGI middleware around Serve's own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            scope = {**scope, "headers": [header for header in scope["headers"] if _may_pass(*header)]}
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve puts around every front, by the setting RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""
    return [Middleware(CleanHeaders)]


def _may_pass(name: bytes, value: bytes) -> bool:
    name = name.lower().replace(b"_", b"-")
    if name == _REQUEST_ID:
        return safe_id(value.decode("latin-1")) is not None
    return name not in _ORDERS
