"""The replica's end of the line to its rank 0: orders out in batches, reports in, open calls answered.

Knows no Ray and no engine. One courier serves one epoch of a group and is closed with it.
"""

import asyncio
import logging
from collections.abc import Callable

import zmq
import zmq.asyncio

from glm_cluster.deploy.channel import Ended, Loss, Orders, Receipt, Report, Seal, Submission
from glm_cluster.errors import GlmError, InternalError

logger = logging.getLogger(__name__)

_WINDOW_S = 0.002  # orders given within this of the last message share the next one


class Courier:
    """Carries submissions to an engine loop and its answers back. Listens on `host`; the loop connects."""

    def __init__(self, host: str) -> None:
        self._context = zmq.asyncio.Context()
        self._orders = self._context.socket(zmq.PUSH)
        self._reports = self._context.socket(zmq.PULL)
        self.orders_endpoint = f"tcp://{host}:{self._orders.bind_to_random_port(f'tcp://{host}')}"
        self.reports_endpoint = f"tcp://{host}:{self._reports.bind_to_random_port(f'tcp://{host}')}"
        self.seal = Seal.new()
        self._calls: dict[tuple[str, int], asyncio.Future[Receipt | Loss]] = {}
        self._adds: list[bytes] = []
        self._cancels: list[tuple[str, int]] = []
        self._given = asyncio.Event()
        self._closed: Loss | None = None
        self.tasks: list[asyncio.Task[None]] = []  # one that ends before `close` has failed, and the line with it

    def start(self, on_report: Callable[[Report], None]) -> None:
        """Begin to carry."""
        self.tasks = [asyncio.create_task(self._send_orders()), asyncio.create_task(self._take_reports(on_report))]

    async def submit(self, submission: Submission) -> Receipt | Loss:
        """Hand `submission` to the engine and wait until it ends. Cancelling this cancels it in the engine."""
        key = (submission.request.request_id, submission.request.attempt)
        if self._closed is not None:
            return self._closed
        if key in self._calls:
            return Loss("a call for this attempt is open already", "moved")
        self._adds.append(_packed(submission))
        call: asyncio.Future[Receipt | Loss] = asyncio.get_running_loop().create_future()
        self._calls[key] = call
        self._given.set()
        try:
            return await call
        finally:
            del self._calls[key]
            if call.cancelled():
                self._cancels.append(key)
                self._given.set()

    async def close(self, loss: Loss) -> None:
        """End every open call, and those still to come, with `loss`, and stop."""
        self._closed = loss
        for call in self._calls.values():
            if not call.done():
                call.set_result(loss)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self._orders.close(linger=0)
        self._reports.close(linger=0)
        self._context.term()

    async def _send_orders(self) -> None:
        while True:
            await self._given.wait()
            self._given.clear()
            orders = Orders(tuple(self._adds), tuple(self._cancels))
            self._adds.clear()
            self._cancels.clear()
            await self._orders.send(self.seal.close(orders.pack()))
            await asyncio.sleep(_WINDOW_S)

    async def _take_reports(self, on_report: Callable[[Report], None]) -> None:
        while True:
            if (body := self.seal.open(await self._reports.recv())) is None:
                continue
            report = Report.unpack(body)
            on_report(report)
            for ended in report.ended:
                self._answer(ended)

    def _answer(self, ended: Ended) -> None:
        call = self._calls.get((ended.request_id, ended.attempt))
        if call is None or call.done():
            return
        if isinstance(ended.outcome, GlmError):
            call.set_exception(ended.outcome)
        else:
            call.set_result(ended.outcome)


def _packed(submission: Submission) -> bytes:
    try:
        return submission.pack()
    except (OverflowError, TypeError, ValueError) as error:
        logger.exception("a request cannot be packed")
        raise InternalError("the request cannot be sent to its engine; the log says why, please report it") from error
