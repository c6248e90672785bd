"""The loop around an engine in rank 0's process: orders in, steps, tokens out.

Knows zmq and the engine. Knows no Ray and no wire protocol. Between two steps it takes everything that arrived; after
a step it sends one message to each ingress concerned, and never waits for one: what a full queue drops, the ingress
misses and fetches again by re-entry.
"""

import logging
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zmq

from glm_cluster.deploy.channel import Ended, Orders, Receipt, Report, ReturnAddress, Seal, Submission, Tokens
from glm_cluster.errors import EngineUnavailable, GlmError, InternalError
from glm_cluster.records import GenerationRequest, TokenEvent

if TYPE_CHECKING:  # the engine brings torch; this module alone does not need it
    from glm_cluster.engine.engine import Engine
    from glm_cluster.engine.scheduler import Failure

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0  # an idle loop reports this often
_REPORT_S = 0.1  # a busy loop reports at most this often, and at once when a request ends
_QUEUED_MESSAGES = 1000  # to one ingress; about half a minute of steps
_IDLE_OUTLET_S = 60.0
_NEVER = float("-inf")


class Outlets:
    """The PUSH sockets to the ingresses that have requests here, made on first use, closed when long unused."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], epoch: str) -> None:
        self._context = context
        self._epoch = epoch
        self._open: dict[ReturnAddress, tuple[zmq.Socket[bytes], float]] = {}

    def push(self, address: ReturnAddress, events: tuple[TokenEvent, ...]) -> None:
        """Send one message, or drop it where the ingress has stopped reading."""
        socket = self._open[address][0] if address in self._open else self._connect(address)
        self._open[address] = (socket, time.monotonic())
        try:
            socket.send(Seal(address.key).close(Tokens(self._epoch, events).pack()), zmq.NOBLOCK)
        except zmq.Again:
            return

    def sweep(self) -> None:
        """Close what has not been used for a while."""
        stale = time.monotonic() - _IDLE_OUTLET_S
        for address in [a for a, (_, used) in self._open.items() if used < stale]:
            self._open.pop(address)[0].close()

    def _connect(self, address: ReturnAddress) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PUSH)
        socket.set(zmq.SNDHWM, _QUEUED_MESSAGES)
        socket.set(zmq.LINGER, 0)
        socket.connect(address.endpoint)
        return socket


@dataclass(slots=True)
class _Open:
    reply_to: ReturnAddress | None
    num_tokens: int


class EngineLoop:
    """Turns an engine; owns its sockets' rhythm and the return address of every request inside.

    Invariant: `_open` holds exactly the submissions that the engine took and that have not ended.
    """

    def __init__(
        self,
        engine: "Engine",
        *,
        orders: zmq.Socket[bytes],
        reports: zmq.Socket[bytes],
        outlets: Outlets,
        seal: Seal,
    ) -> None:
        self._engine = engine
        self._orders = orders
        self._reports = reports
        self._outlets = outlets
        self._seal = seal
        self._open: dict[tuple[str, int], _Open] = {}
        self._ended: list[Ended] = []
        self._batches: list[int] = []
        self._reported_at = _NEVER

    def turn(self) -> None:
        """Take the orders that wait, run one step, send what it made. Sleeps until a heartbeat is due when idle.

        The first turn reports at once: a group is ready when its replica hears so.
        """
        self._take_orders()
        if self._engine.has_work:
            self._deliver(self._engine.step())
            self._end_failed(self._engine.take_failures())
        self._report()

    def _take_orders(self) -> None:
        busy = self._engine.has_work or self._ended or self._reported_at == _NEVER
        if not self._orders.poll(0 if busy else int(HEARTBEAT_S * 1000)):
            return
        adds: list[Submission] = []
        while self._orders.poll(0):
            if (body := self._seal.open(self._orders.recv())) is not None:
                orders = Orders.unpack(body)
                adds.extend(map(Submission.unpack, orders.adds))
                self._cancel(orders.cancels, adds)
        for submission in adds:
            self._add(submission)
        if adds:
            self._batches.append(len(adds))

    def _cancel(self, cancels: tuple[tuple[str, int], ...], adds: list[Submission]) -> None:
        for key in cancels:
            if self._open.pop(key, None):
                self._engine.cancel(*key)
            else:
                adds[:] = [a for a in adds if (a.request.request_id, a.request.attempt) != key]

    def _add(self, submission: Submission) -> None:
        request = submission.request
        key = (request.request_id, request.attempt)
        if request.attempt:
            self._drop_before(*key)
        try:
            self._engine.add(request)
        except GlmError as refusal:
            self._ended.append(Ended(*key, refusal))
        except Exception:  # the edge of the process: the others keep their group
            logger.exception("a request could not be added")
            error = InternalError("the engine failed on the request; its log says why, please report it")
            self._ended.append(Ended(*key, error))
        else:
            output = request.output if isinstance(request, GenerationRequest) else ()
            self._open[key] = _Open(submission.reply_to, len(output))

    def _drop_before(self, request_id: str, attempt: int) -> None:
        """Cancel the earlier attempts of a request: whoever makes the next one has given them up."""
        for key in [k for k in self._open if k[0] == request_id and k[1] < attempt]:
            del self._open[key]
            self._engine.cancel(*key)
            self._ended.append(Ended(*key, EngineUnavailable(f"attempt {attempt} of the request has taken over")))

    def _deliver(self, events: list[TokenEvent]) -> None:
        outgoing: defaultdict[ReturnAddress, list[TokenEvent]] = defaultdict(list)
        for event in events:
            key = (event.request_id, event.attempt)
            if (request := self._open.get(key)) is None:
                continue  # cancelled while the step ran
            request.num_tokens = event.start + len(event.tokens)
            if request.reply_to is not None:
                outgoing[request.reply_to].append(event)
            if event.finish is not None:
                del self._open[key]
                self._ended.append(Ended(*key, Receipt(request.num_tokens, event.finish, event.encoded)))
        for address, batch in outgoing.items():
            self._outlets.push(address, tuple(batch))

    def _end_failed(self, failures: "list[Failure]") -> None:
        for failure in failures:
            key = (failure.request_id, failure.attempt)
            if self._open.pop(key, None):
                self._ended.append(Ended(*key, failure.error))

    def _report(self) -> None:
        now = time.monotonic()
        if not self._ended and now - self._reported_at < _REPORT_S:
            return
        report = Report(self._engine.num_steps, self._engine.load(), tuple(self._ended), tuple(self._batches))
        self._reports.send(self._seal.close(report.pack()), zmq.NOBLOCK)
        self._ended.clear()
        self._batches.clear()
        self._reported_at = now
        self._outlets.sweep()
