"""What Serve never gets to see of a request's headers: clients' orders to it, and their names for requests.

Knows the headers that Serve acts on. Refuses to know what headers mean to us: that is the gate's business.
"""

from collections.abc import Iterable

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glm_cluster.api.callers import safe_id

CLIENTS_NAME = b"x-client-request-id"  # where the gate looks for what the client calls its request
_NAME = b"x-request-id"  # clients send it too; Serve would take it, or fail on one that is not UTF-8
_ORDERS = frozenset(
    {
        b"x-request-timeout-seconds",  # would end a request in a way of Serve's own
        b"x-request-disconnect-disabled",  # would have us answer a client who has gone
        b"serve-multiplexed-model-id",
        b"x-session-id",
    }
)
_Headers = Iterable[tuple[bytes, bytes]]


class CleanHeaders:
    """An ASGI middleware around Serve's own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            scope = {**scope, "headers": _cleaned(scope["headers"])}
        await self._app(scope, receive, _named_once(send))


def middlewares() -> list[Middleware]:
    """What Serve puts around every front, by the setting RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""
    return [Middleware(CleanHeaders)]


def _cleaned(headers: _Headers) -> list[tuple[bytes, bytes]]:
    """The headers that may pass, and the client's name for the request where the gate looks for it."""
    passed: list[tuple[bytes, bytes]] = []
    names: dict[bytes, bytes] = {}
    for name, value in headers:
        plain = name.lower().replace(b"_", b"-")
        if plain in (CLIENTS_NAME, _NAME):
            names.setdefault(plain, value)
        elif plain not in _ORDERS:
            passed.append((name, value))
    given = names.get(CLIENTS_NAME, names.get(_NAME))
    if given is not None and safe_id(given.decode("latin-1")) is not None:
        passed.append((CLIENTS_NAME, given))
    return passed


def _named_once(send: Send) -> Send:
    """Serve names every response, also one that has been named."""

    async def named_once(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            first = next((index for index, (name, _) in enumerate(headers) if name.lower() == _NAME), None)
            kept = [one for index, one in enumerate(headers) if index == first or one[0].lower() != _NAME]
            message = {**message, "headers": kept}
        await send(message)

    return named_once
