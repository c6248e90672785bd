"""A tokenizer of bytes, and servers on real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.checkpoints import write_tokenizer

from glm_cluster.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The 256 bytes, and a control token 300 after a hole."""
    return Tokenizer.from_directory(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def quick_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few calls over a small pool: the arithmetic is the same."""
    monkeypatch.setattr("glm_cluster.bench.floor.POOL_BYTES", 1 << 18)
    monkeypatch.setattr("glm_cluster.bench.floor.LEAST_S", 0.0)


class FakeServer:
    """Lists a model and answers completions with `events`, keeping the bodies it was sent."""

    def __init__(self) -> None:
        self.models: list[dict[str, str]] = [{"id": "labels", "task": "classify"}, {"id": "m"}]
        self.events: list[str] = []
        self.status = 200
        self.error = b'{"error": {"message": "too long"}}'
        self.bodies: list[dict[str, object]] = []
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FakeServer"]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            (int(line.split(":")[1]) for line in head.lower().split("\r\n") if line.startswith("content-length")), 0
        )
        body = await reader.readexactly(length)
        if head.startswith("GET /v1/models "):
            answer, status = json.dumps({"data": self.models}).encode(), 200
        else:
            self.bodies.append(json.loads(body))
            status = self.status
            answer = "".join(f"data: {event}\n\n" for event in self.events).encode() if status == 200 else self.error
        writer.write(b"HTTP/1.1 %d x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (status, len(answer)))
        writer.write(answer)
        await writer.drain()
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer().running() as running:
        yield running


@pytest.fixture
def fake_server() -> type[FakeServer]:
    """For tests that need several, or a loop of their own."""
    return FakeServer
