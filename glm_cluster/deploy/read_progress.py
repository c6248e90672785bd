"""How far the ranks are with reading their weights, told while they read to whoever started the cluster on this host.

Knows zmq and byte counts. Knows no Ray: a replica cannot be asked before its constructor ends, so the ranks speak
unasked. They never wait to be heard, and load alike whether anybody listens.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import zmq

from glm_cluster.deploy.channel import BytesRead, ReturnAddress, Seal

_PERIOD_S = 0.1  # between a rank's reports
_LINGER_MS = 1000  # for the last of them, when the rank is done


class ReadReporter:
    """A rank's voice: call it with the bytes read and those there are to read. `address` None: nobody wants to know."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: ReturnAddress | None, source: str) -> None:
        self._source = source
        self._address = address
        self._socket = context.socket(zmq.PUSH)
        self._said_at = float("-inf")
        if address is not None:
            self._socket.connect(address.endpoint)

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._address is None or (done < total and now - self._said_at < _PERIOD_S):
            return
        self._said_at = now
        with suppress(zmq.Again):  # many are waiting for a listener that has gone
            message = Seal(self._address.key).close(BytesRead(self._source, done, total).pack())
            self._socket.send(message, zmq.NOBLOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close(linger=_LINGER_MS)


class ReadTally:
    """The reports of all ranks as one. A rank not heard of yet counts as one like the others that has read nothing."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._last: dict[str, BytesRead] = {}

    def note(self, report: BytesRead) -> None:
        """Take one report; of each rank the last one counts."""
        self._last[report.source] = report

    @property
    def done_bytes(self) -> int:
        """Bytes read by all ranks."""
        return sum(report.done for report in self._last.values())

    @property
    def total_bytes(self) -> int:
        """Bytes that all ranks have to read; 0 before any of them was heard."""
        heard = len(self._last)
        return sum(r.total for r in self._last.values()) * max(heard, self._num_ranks) // max(1, heard)


class ReadListener:
    """The ear on this host. Whoever waits for the ranks waits here."""

    def __init__(
        self, socket: zmq.Socket[bytes], address: ReturnAddress, num_ranks: int, on_read: Callable[[int, int], None]
    ) -> None:
        self.address = address
        self._socket = socket
        self._seal = Seal(address.key)
        self._tally = ReadTally(num_ranks)
        self._on_read = on_read

    @classmethod
    @contextmanager
    def open(cls, num_ranks: int, on_read: Callable[[int, int], None]) -> Iterator[Self]:
        """Listen to `num_ranks` ranks; `on_read` gets the bytes that they have read, and all that they will."""
        with zmq.Context() as context, context.socket(zmq.PULL) as socket:
            port = socket.bind_to_random_port("tcp://127.0.0.1")
            yield cls(socket, ReturnAddress(f"tcp://127.0.0.1:{port}", Seal.new().key), num_ranks, on_read)

    def wait(self, seconds: float) -> None:
        """Pass on what comes within `seconds`, or has come already."""
        deadline = time.monotonic() + seconds
        while self._socket.poll(max(0, int(1000 * (deadline - time.monotonic())))):
            if (body := self._seal.open(self._socket.recv())) is not None:
                self._tally.note(BytesRead.unpack(body))
                self._on_read(self._tally.done_bytes, self._tally.total_bytes)
