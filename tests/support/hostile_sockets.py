"""HTTP as no client library sends it, byte by byte, and clients that go away."""

import asyncio
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

BODY = b'{"model": "tiny", "prompt": [5, 6], "max_tokens": 1}'
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nConnection: close\r\n"
_PATIENCE_S = 3.0


def _post(*headers: bytes, body: bytes = BODY) -> bytes:
    return HEAD + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


def _sized(*headers: bytes, body: bytes = BODY) -> bytes:
    return _post(b"Content-Length: %d" % len(body), *headers, body=body)


def requests() -> Iterator[tuple[str, bytes]]:
    """Each with a name."""
    for length in (b"-1", b"0x10", b"1e3", b"", b"9" * 30, b"10, 20", b"5", b"51", b"0"):
        yield f"length {length!r}", _post(b"Content-Length: " + length)
    yield "two lengths", _post(b"Content-Length: 10", b"Content-Length: 52")
    yield "a longer length", _post(b"Content-Length: 1000")
    yield "no length", _post()
    chunked = b"Transfer-Encoding: chunked"
    yield "a length and chunks", _post(b"Content-Length: 5", chunked, body=b"34\r\n" + BODY + b"\r\n0\r\n\r\n")
    for size in (b"-1", b"zz", b"f" * 20, b"", b"34 ", b"0"):
        yield f"a chunk of {size!r}", _post(chunked, body=size + b"\r\n" + BODY + b"\r\n0\r\n\r\n")
    yield "chunks without an end", _post(chunked, body=b"34\r\n" + BODY[:20])
    yield "an unknown coding", _post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n")
    yield "a compressed body", _sized(b"Content-Encoding: gzip")
    yield "another type", _sized(b"Content-Type: multipart/form-data; boundary=" + b"a" * 1000)
    yield "a thousand headers", _sized(*(b"X-%d: a" % i for i in range(1000)))
    yield "101 headers", _sized(*(b"X-%d: a" % i for i in range(101)))
    yield "a header of a megabyte", _sized(b"X-A: " + b"a" * (1 << 20))
    yield "headers of 40 kB", _sized(*(b"X-%d: %s" % (i, b"a" * 1000) for i in range(40)))
    yield "a header without a colon", _sized(b"hello")
    yield "a name with NUL", _sized(b"X-\x00A: a")
    yield "a value with NUL", _sized(b"X-A: a\x00b")
    yield "a name with a space", _sized(b"X A: a")
    yield "a folded header", _sized(b"X-A: a\r\n b")
    yield "a lone line feed", _sized(b"X-Request-Id: a\nX-Evil: b")
    yield "a lone carriage return", _sized(b"X-Request-Id: a\rX-Evil: b")
    yield "an id with a line break", _sized(b"X-Request-Id: a\r\nX-Evil: b")
    for id in (b"a%0d%0aX-Evil: b", b"\xff\xfe", b"", b"a" * 5000, b"\x1b[31m", b"<script>"):
        yield f"id {id[:20]!r}", _sized(b"X-Request-Id: " + id)
    for order in (
        b"Timeout-Seconds: 1e-9",
        b"Timeout-Seconds: nan",
        b"Timeout-Seconds: \xff",
        b"Disconnect-Disabled: \xff",
    ):
        yield f"an order {order!r}", _sized(b"X-Request-" + order)
    for name in (b"X-Session-Id", b"Serve_Multiplexed_Model_Id", b"Traceparent", b"Authorization", b"X-A"):
        yield f"{name!r} that is no UTF-8", _sized(name + b": \xff\xfe")
    yield "many ids", _sized(*[b"X-Request-Id: a"] * 50)
    yield "expect", _sized(b"Expect: 100-continue")
    yield "expect nonsense", _sized(b"Expect: nonsense")
    yield "an upgrade", _sized(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: a")
    for line in (
        *(b"", b"\x00", b"GET", b"GET /", b"GET / HTTP/9.9", b"HELLO / HTTP/1.1", b"POST /v1/completions HTTP/1.1 x"),
        *(b"GET /%00 HTTP/1.1", b"GET /../../etc/passwd HTTP/1.1", b"GET //v1//models HTTP/1.1", b"GET /%zz HTTP/1.1"),
        *(b"GET http://b/v1/models HTTP/1.1", b"OPTIONS * HTTP/1.1", b"CONNECT b:80 HTTP/1.1", b"TRACE / HTTP/1.1"),
        *(b"GET /\xff HTTP/1.1", b"GET /v1/models/" + b"a" * 60_000 + b" HTTP/1.1", b"PUT /v1/completions HTTP/1.1"),
    ):
        yield f"line {line[:30]!r}", line + b"\r\nHost: a\r\nConnection: close\r\n\r\n"
    yield "no host", b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n"
    yield "two hosts", b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n"
    yield "TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
    yield "a megabyte of nothing", bytes(1 << 20)


async def answer(address: tuple[str, int], request: bytes) -> bytes:
    """What comes back until the server ends the connection; a server that waits for more hears that it is all."""
    reader, writer = await asyncio.open_connection(*address)
    coming = asyncio.create_task(_all_of(reader))
    try:
        with suppress(ConnectionError):
            writer.write(request)
            await writer.drain()
            done, _ = await asyncio.wait([coming], timeout=_PATIENCE_S)
            if not done:
                writer.write_eof()
        return await coming
    finally:
        coming.cancel()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    came = b""
    with suppress(ConnectionError):
        while piece := await reader.read(1 << 16):
            came += piece
    return came


async def leave(address: tuple[str, int], request: bytes, *, after_s: float, rudely: bool) -> None:
    """Send something and go away, with a reset if `rudely`."""
    reader, writer = await asyncio.open_connection(*address)
    if rudely:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.write(request)
    with suppress(TimeoutError, ConnectionError):
        await asyncio.wait_for(reader.read(1), 0.001 + after_s)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
