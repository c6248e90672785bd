"""The ingress's end of the side channel: one socket for every engine, sorted into one feed per attempt.

Knows no Ray and no journal. A record for an attempt that is not open here (an earlier one, one that was cancelled), a
message with a foreign seal, or the tokens of a second epoch are dropped without a word: they are late, not wrong.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import zmq
import zmq.asyncio

from glm_cluster.deploy.channel import ReturnAddress, Seal, Tokens
from glm_cluster.records import TokenEvent

logger = logging.getLogger(__name__)


class Feed:
    """The token events of one attempt, in the order they came."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[object] = asyncio.Queue()
        self._epoch: str | None = None

    def deliver(self, epoch: str, event: TokenEvent) -> None:
        """Queue `event` unless it is from another epoch than the feed's first."""
        if self._epoch is None:
            self._epoch = epoch
        if epoch == self._epoch:
            self.queue.put_nowait(event)


class Inbox:
    """One bound PULL socket and the open feeds behind it."""

    def __init__(self, context: zmq.asyncio.Context, socket: zmq.asyncio.Socket, address: ReturnAddress) -> None:
        self.address = address
        self._context = context
        self._socket = socket
        self._seal = Seal(address.key)
        self._feeds: dict[tuple[str, int], Feed] = {}
        self._pump = asyncio.create_task(self._run())

    @classmethod
    def open(cls, host: str) -> Self:
        """Listen on `host` at a port the kernel picks. Call inside the event loop that will read."""
        context = zmq.asyncio.Context()
        socket = context.socket(zmq.PULL)
        socket.set(zmq.RCVHWM, 0)  # the bound is each engine's send queue; here we always read
        port = socket.bind_to_random_port(f"tcp://{host}")
        return cls(context, socket, ReturnAddress(f"tcp://{host}:{port}", Seal.new().key))

    @contextmanager
    def feed(self, request_id: str, attempt: int) -> Iterator[Feed]:
        """Receive the tokens of one attempt for as long as the block runs."""
        key = (request_id, attempt)
        self._feeds[key] = feed = Feed()
        try:
            yield feed
        finally:
            del self._feeds[key]

    async def close(self) -> None:
        """Stop listening."""
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        self._socket.close(linger=0)
        self._context.term()

    async def _run(self) -> None:
        while True:
            self._sort(await self._socket.recv())

    def _sort(self, message: bytes) -> None:
        if (body := self._seal.open(message)) is None:
            return
        try:
            tokens = Tokens.unpack(body)
        except Exception:  # an engine of another release; the streams of the others go on
            logger.exception("a message from an engine cannot be read; its requests will move")
            return
        for event in tokens.events:
            if feed := self._feeds.get((event.request_id, event.attempt)):
                feed.deliver(tokens.epoch, event)
