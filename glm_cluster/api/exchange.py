"""One HTTP exchange over ASGI: a body in, JSON or server-sent events out, the client watched meanwhile.

Knows bytes and sockets' ends. Refuses to know routes and what the JSON means. A request has its place before its body
is read: what is on its way in takes memory as well.
"""

import asyncio
import contextlib
import json
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence

from starlette.types import Receive, Scope, Send

from glm_cluster.api.access import Access
from glm_cluster.api.account import Account
from glm_cluster.api.callers import Caller
from glm_cluster.api.gate import caller_of
from glm_cluster.api.replies import error_body, sse
from glm_cluster.errors import BodyTooLarge, BodyTooSlow, GlmError, Overloaded

BODY_S = 60.0  # from the headers to the body's last byte


class Outgoing:
    """The way back to `caller`: one JSON body, or a stream of events."""

    def __init__(self, send: Send, caller: Caller) -> None:
        self.caller = caller
        self._send = send
        self._streaming = False

    async def json(self, status: int, body: Mapping[str, object], headers: Mapping[str, str] | None = None) -> None:
        """Send the whole response."""
        await self.json_pieces(status, [json.dumps(body, separators=(",", ":")).encode()], headers)

    async def json_pieces(self, status: int, pieces: Sequence[bytes], headers: Mapping[str, str] | None = None) -> None:
        """Send the whole response, whose JSON is in pieces: a long one goes no faster than the client takes it."""
        length = sum(len(piece) for piece in pieces)
        await self._start(
            status, {"content-type": "application/json", "content-length": str(length), **(headers or {})}
        )
        for piece in pieces[:-1]:
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        await self._send({"type": "http.response.body", "body": pieces[-1]})

    async def start_events(self) -> None:
        """Send the headers of a stream."""
        self._streaming = True
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
        }
        await self._start(200, headers)

    async def event(self, event: bytes) -> None:
        """Send one event at once."""
        if event:
            await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def end(self) -> None:
        """Close the stream."""
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: GlmError) -> None:
        """Tell the client: by status while there is still one to send, else by a last event."""
        if self._streaming:
            await self.event(sse(error_body(error)))
            await self.end()
        else:
            retry = {"retry-after": f"{math.ceil(error.retry_after_s)}"} if isinstance(error, Overloaded) else None
            await self.json(error.http_status, error_body(error), retry)

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})


class ClientGone(asyncio.CancelledError):
    """There is nobody left to answer: what was asked is cancelled, and counted so."""


class Endpoint:
    """An ASGI application for one POST route. It owns the exchange from the body's first byte to the answer's last."""

    def __init__(
        self, route: str, answer: Callable[[bytes, Outgoing, Account], Coroutine[object, object, None]], access: Access
    ) -> None:
        self._route = route
        self._answer = answer
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        out = Outgoing(send, caller_of(scope))
        try:
            with self._access.request("http", self._route, out.caller) as account:
                body = await read_body(receive, self._access.limits.max_body_bytes)
                await while_connected(receive, self._answer(body, out, account))
        except ClientGone:
            return
        except GlmError as error:
            await out.fail(error)


async def while_connected(receive: Receive, work: Coroutine[object, object, None]) -> None:
    """Run `work`; when the client goes away cancel it, and raise once it has cleaned up."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watching.cancel()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
    if working.cancelled():
        raise ClientGone


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(receive: Receive, max_bytes: int) -> bytes:
    """The body, unless it is too long to be a prompt or too long in coming."""
    try:
        async with asyncio.timeout(BODY_S):
            return await _whole_body(receive, max_bytes)
    except TimeoutError as error:
        raise BodyTooSlow(f"the body did not come within {BODY_S:g} s; send it in one go") from error


async def _whole_body(receive: Receive, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunks.append(message.get("body", b""))
        if (num_bytes := num_bytes + len(chunks[-1])) > max_bytes:
            raise body_too_large(max_bytes)
        if not message.get("more_body", False):
            return b"".join(chunks)


def body_too_large(max_bytes: int) -> BodyTooLarge:
    """What is said of a body longer than that, on either wire."""
    return BodyTooLarge(f"the body is over {max_bytes} bytes; send a shorter prompt")
