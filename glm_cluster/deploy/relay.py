"""The front's `Generator` and `Encoder`: a journal for every request, and re-entry elsewhere when a replica is lost.

Re-entry is bounded twice. A request may move a few times; one that was inside two engines when they died may be what
kills them, and fails alone. So may a request that was only beside it both times: the relay cannot tell them apart.

Knows neither Ray nor the engine: it is given a way to submit and an inbox. A stream's tokens are exactly those of the
undisturbed run, because an attempt goes on after the tokens already emitted and nothing but the next index is taken.
What an encode request comes to is in its receipt, so that each attempt begins anew.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import replace
from itertools import count
from typing import TypeAlias
from uuid import uuid4

from glm_cluster.deploy.backoff import pause_s
from glm_cluster.deploy.channel import Loss, Receipt, Request, ReturnAddress, Submission
from glm_cluster.deploy.inbox import Feed, Inbox
from glm_cluster.errors import DeadlineExceeded, EngineUnavailable, GlmError, InternalError
from glm_cluster.metrics import MIGRATIONS, Meters
from glm_cluster.records import Encoded, EncodeRequest, GenerationRequest, TokenEvent

Submit: TypeAlias = Callable[[Submission], Awaitable[Receipt | Loss]]
"""Send a submission to some replica and wait until it ends there. Raises GlmError where it can never succeed."""

logger = logging.getLogger(__name__)

_MAX_DEATHS = 2  # engines that may die with a request inside before it is tried no more
_LATE_TOKENS_S = 2.0  # how long the last tokens may trail the receipt
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0  # between attempts that no engine saw


class Journal:
    """What is known of one request: the ids already emitted, the attempts made, the replica that failed it last."""

    def __init__(self, request: Request, request_id: str) -> None:
        self._request = request
        self._id = request_id
        self._output = list(request.output) if isinstance(request, GenerationRequest) else []
        self._attempt = request.attempt - 1
        self._failed: str | None = None
        self.migrations = 0  # deaths among them
        self.deaths = 0
        self.refusals = 0  # in a row

    @property
    def position(self) -> int:
        """The index the next token will have."""
        return len(self._output)

    def next_attempt(self) -> Request:
        """The request as the next engine gets it: after everything already emitted."""
        self._attempt += 1
        if isinstance(self._request, EncodeRequest):
            return replace(self._request, request_id=self._id, attempt=self._attempt)
        return replace(self._request, request_id=self._id, attempt=self._attempt, output=tuple(self._output))

    @property
    def avoid(self) -> tuple[str, ...]:
        """The replica to go round, if others are up. One that failed earlier may be well again by now."""
        return () if self._failed is None else (self._failed,)

    def record(self, event: TokenEvent) -> TokenEvent:
        """Note `event` and return it under the name its caller knows it by."""
        self._output.extend(event.tokens)
        self.refusals = 0
        return replace(event, request_id=self._request.request_id, attempt=self._request.attempt)

    def note(self, loss: Loss) -> None:
        """Count a lost attempt."""
        if loss.kind == "refused":
            self.refusals += 1
        else:
            self.migrations += 1
            self.deaths += loss.kind == "died"
        self._failed = loss.replica


class Relay:
    """Generates and encodes through replicas, one attempt at a time."""

    def __init__(
        self, submit: Submit, inbox: Inbox, *, max_migrations: int, request_timeout_s: float, meters: Meters
    ) -> None:
        self._submit = submit
        self._inbox = inbox
        self._max_migrations = max_migrations
        self._timeout_s = request_timeout_s
        self._meters = meters
        self._prefix = uuid4().hex[:12]  # request ids must differ between ingresses
        self._serial = count()
        self._calls: set[asyncio.Task[Receipt | Loss | GlmError]] = set()  # the loop alone holds tasks weakly

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """Yield the request's events in order, across as many replicas as it takes."""
        journal, deadline = self._open(request)
        while True:
            with self._attempt(journal, deadline, self._inbox.address) as attempt:
                while isinstance(item := await attempt.next(journal.position), TokenEvent):
                    yield journal.record(item)
                    if item.finish:
                        return
            await self._take_loss(journal, item)

    async def encode(self, request: EncodeRequest) -> Encoded:
        """The request's rows, from whichever replica first comes to its end. Cancelling this cancels it there."""
        journal, deadline = self._open(request)
        while True:
            with self._attempt(journal, deadline, None) as attempt:
                end = await attempt.end()
            if isinstance(end, Encoded):
                return end
            await self._take_loss(journal, end)

    def _open(self, request: Request) -> tuple[Journal, float]:
        """A journal, and when the request's time is over."""
        journal = Journal(request, f"{self._prefix}-{next(self._serial)}")
        return journal, asyncio.get_running_loop().time() + self._timeout_s

    async def _take_loss(self, journal: Journal, loss: Loss) -> None:
        """Give up, or return when the next attempt may begin."""
        journal.note(loss)
        self._give_up_where_due(journal, loss)
        if loss.kind == "refused":
            await asyncio.sleep(pause_s(journal.refusals, _FIRST_PAUSE_S, _LONGEST_PAUSE_S))
        else:
            self._meters.count(MIGRATIONS, 1)

    def _give_up_where_due(self, journal: Journal, last: Loss) -> None:
        if journal.deaths >= _MAX_DEATHS:
            raise InternalError(
                f"{journal.deaths} engines died with the request inside (last: {last.reason}); it is not tried again"
            )
        if journal.migrations > self._max_migrations:
            raise EngineUnavailable(f"the request was lost {journal.migrations} times (last: {last.reason}); try again")

    @contextmanager
    def _attempt(self, journal: Journal, deadline: float, reply_to: ReturnAddress | None) -> Iterator["_Attempt"]:
        request = journal.next_attempt()
        submission = Submission(request, reply_to, journal.avoid)
        loop = asyncio.get_running_loop()
        with self._inbox.feed(request.request_id, request.attempt) as feed:
            # An empty context: the call must not inherit the id and protocol of the client's own request.
            call = loop.create_task(_call(self._submit, submission), context=Context())
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
            call.add_done_callback(lambda done: feed.queue.put_nowait(_outcome(done)))
            timeout = DeadlineExceeded(f"the request did not finish within {self._timeout_s:g} s")
            timer = loop.call_at(deadline, feed.queue.put_nowait, timeout)
            attempt = _Attempt(feed, call)
            try:
                yield attempt
            finally:
                timer.cancel()
                attempt.leave()


class _Attempt:
    """One submission. Tokens, the receipt, losses, errors and the deadline all arrive in its feed's queue."""

    def __init__(self, feed: Feed, call: "asyncio.Task[Receipt | Loss | GlmError]") -> None:
        self._feed = feed
        self._call = call
        self._receipt: Receipt | None = None
        self._finished = False

    async def next(self, position: int) -> TokenEvent | Loss:
        """The event whose first token has index `position`; a Loss when this attempt will not bring it."""
        while True:
            if self._receipt is not None and 0 < position == self._receipt.num_tokens:  # at 0 the event tells of more
                self._finished = True
                return TokenEvent("", 0, position, (), self._receipt.finish)  # the journal names it
            match await self._feed.queue.get():
                case TokenEvent(start=start) as event if start == position:
                    self._finished = event.finish is not None
                    return event
                case TokenEvent(start=start) if start > position:
                    return Loss(f"tokens {position} to {start - 1} went missing", "moved")
                case Loss() as loss:
                    return loss
                case GlmError() as error:
                    raise error
                case Receipt() as receipt:  # it may overtake the last tokens
                    self._receipt = receipt
                    late = Loss("the last tokens went missing", "moved")
                    asyncio.get_running_loop().call_later(_LATE_TOKENS_S, self._feed.queue.put_nowait, late)

    async def end(self) -> Encoded | Loss:
        """What an encode request came to; a Loss when this attempt will not bring it."""
        match await self._feed.queue.get():
            case Receipt(encoded=Encoded() as encoded):
                self._finished = True
                return encoded
            case GlmError() as error:
                raise error
            case Loss() as loss:
                return loss
            case other:
                logger.error("a replica answered %r instead of rows", other)
                return Loss("the replica answered something else instead of rows", "moved")

    def leave(self) -> None:
        """Cancel the call down to the engine, unless the request has ended there anyway."""
        if not self._finished:
            self._call.cancel()


async def _call(submit: Submit, submission: Submission) -> Receipt | Loss | GlmError:
    try:
        return await submit(submission)
    except GlmError as error:
        return error
    except Exception:  # the edge of the process: whatever Ray raises, another replica may do better
        logger.exception("a replica call failed")
        return Loss("the replica call failed", "moved")


def _outcome(call: "asyncio.Task[Receipt | Loss | GlmError]") -> Receipt | Loss | GlmError:
    """What a call has come to. One that was cancelled was so by somebody else, or nobody reads this any more."""
    return Loss("the replica call was cancelled", "moved") if call.cancelled() else call.result()
