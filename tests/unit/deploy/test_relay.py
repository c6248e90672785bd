"""The relay's promise: every stream is the undisturbed one, whatever happens to its replicas.

The engine here is arithmetic: token p of a request is (sum of the prompt + 10 * p). So every expected id can be worked
out by hand, and a re-entered request must go on with the same ones.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

import pytest
import zmq
import zmq.asyncio

from glm_cluster.deploy import relay as relay_module
from glm_cluster.deploy.channel import Loss, Receipt, Seal, Submission, Tokens
from glm_cluster.deploy.inbox import Inbox
from glm_cluster.deploy.relay import Journal, Relay
from glm_cluster.errors import DeadlineExceeded, EngineUnavailable, InternalError, InvalidRequest, Overloaded
from glm_cluster.metrics import NoMeters
from glm_cluster.records import Encoded, EncodeRequest, GenerationRequest, SamplingParams, TokenEvent, TokenLogprobs

ROWS = Encoded(1, 1, b"abcd", 3)
TO_ENCODE = EncodeRequest(request_id="client's", prompt=(1, 2), pooling="mean", attempt=4)
REQUEST = GenerationRequest(request_id="client's", prompt=(1, 2), sampling=SamplingParams(max_tokens=6))
UNDISTURBED = [3, 13, 23, 33, 43, 53]


class Wire:
    """What an engine would use to reach the inbox, and a log of what was submitted."""

    def __init__(self) -> None:
        self.submissions: list[Submission] = []
        self.cancelled: list[int] = []
        self._context = zmq.asyncio.Context()
        self._sockets: dict[str, zmq.asyncio.Socket] = {}
        self._num_sent = 0
        self.num_arrived = 0

    async def arrived(self) -> None:
        """Until the inbox has read all that was sent."""
        while self.num_arrived < self._num_sent:
            await asyncio.sleep(0.001)

    async def send(self, to: Submission, events: list[TokenEvent], *, epoch: str = "e", seal: Seal | None = None):
        await self.send_bytes(to, Tokens(epoch, tuple(events)).pack(), seal=seal)

    async def send_bytes(self, to: Submission, body: bytes, *, seal: Seal | None = None) -> None:
        address = to.reply_to
        assert address is not None
        if address.endpoint not in self._sockets:
            self._sockets[address.endpoint] = socket = self._context.socket(zmq.PUSH)
            socket.connect(address.endpoint)
        self._num_sent += 1
        await self._sockets[address.endpoint].send((seal or Seal(address.key)).close(body))

    async def run(self, submission: Submission, *, stop_at: int | None = None, epoch: str = "e") -> Receipt:
        """Be the engine until `stop_at` tokens are out, or to the end."""
        request = submission.request
        last = request.sampling.max_tokens
        for index in range(len(request.output), last if stop_at is None else stop_at):
            await self.send(submission, [event(submission, index)], epoch=epoch)
            await asyncio.sleep(0)
        return Receipt(last, "length")

    def close(self) -> None:
        for socket in self._sockets.values():
            socket.close(linger=0)
        self._context.term()


def event(to: Submission, index: int) -> TokenEvent:
    request = to.request
    finish = "length" if index == request.sampling.max_tokens - 1 else None
    return TokenEvent(request.request_id, request.attempt, index, (sum(request.prompt) + 10 * index,), finish)


Behaviour = Callable[[Wire, Submission], Awaitable[Receipt | Loss]]


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


@pytest.fixture
async def inbox(wire: Wire) -> AsyncIterator[Inbox]:
    class CountedInbox(Inbox):
        def _sort(self, message: bytes) -> None:
            super()._sort(message)
            wire.num_arrived += 1

    inbox = CountedInbox.open("127.0.0.1")
    yield inbox
    assert not inbox._feeds
    await inbox.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "_LATE_TOKENS_S", 30.0)
    monkeypatch.setattr(relay_module, "_FIRST_PAUSE_S", 0.001)


@pytest.fixture
def make_relay(wire: Wire, inbox: Inbox) -> Callable[..., Relay]:
    """A relay whose attempts behave one after the other as given, the last for all that follow."""

    def make(*behaviours: Behaviour, max_migrations: int = 3, request_timeout_s: float = 60.0) -> Relay:
        async def submit(submission: Submission) -> Receipt | Loss:
            wire.submissions.append(submission)
            try:
                return await behaviours[min(len(wire.submissions), len(behaviours)) - 1](wire, submission)
            except asyncio.CancelledError:
                wire.cancelled.append(submission.request.attempt)
                raise

        return Relay(
            submit, inbox, max_migrations=max_migrations, request_timeout_s=request_timeout_s, meters=NoMeters()
        )

    return make


async def undisturbed(wire: Wire, submission: Submission) -> Receipt:
    return await wire.run(submission)


async def collect(relay: Relay, request: GenerationRequest = REQUEST) -> list[int]:
    """The ids of a stream, having checked what every stream promises."""
    ids = list(request.output)
    finishes = []
    async for got in relay.generate(request):
        assert (got.request_id, got.attempt, got.start) == (request.request_id, request.attempt, len(ids))
        ids += got.tokens
        finishes.append(got.finish)
    assert finishes[-1] == "length"
    assert set(finishes[:-1]) <= {None}
    return ids


async def test_an_undisturbed_stream(make_relay, wire: Wire):
    assert await collect(make_relay(undisturbed)) == UNDISTURBED
    assert len(wire.submissions) == 1


async def test_a_caller_may_bring_output_of_its_own(make_relay):
    assert await collect(make_relay(undisturbed), replace(REQUEST, output=(3, 13), attempt=5)) == UNDISTURBED


@pytest.mark.parametrize("cut", range(1, 6))
async def test_tokens_that_came_together_are_taken_together(make_relay, wire: Wire, cut: int):
    """A step that guessed right brings several; what a re-entered request may guess goes with it."""

    async def run(wire: Wire, submission: Submission) -> Receipt | Loss:
        request, start = submission.request, len(submission.request.output)
        tokens = tuple(UNDISTURBED[start:] if request.attempt else UNDISTURBED[:cut])
        finish = "length" if request.attempt else None
        await wire.send(submission, [TokenEvent(request.request_id, request.attempt, start, tokens, finish)])
        await wire.arrived()
        return Receipt(6, "length") if request.attempt else Loss("killed", "died")

    assert await collect(make_relay(run), replace(REQUEST, max_drafts=3)) == UNDISTURBED
    assert [s.request.max_drafts for s in wire.submissions] == [3, 3]
    assert list(wire.submissions[1].request.output) == UNDISTURBED[:cut]


@pytest.mark.parametrize("cut", range(6))
async def test_a_lost_replica_is_not_noticed(make_relay, wire: Wire, cut: int):
    async def dies(wire: Wire, submission: Submission) -> Loss:
        await wire.run(submission, stop_at=cut)
        await wire.arrived()
        return Loss("killed", "died", replica="a")

    assert await collect(make_relay(dies, undisturbed)) == UNDISTURBED
    second = wire.submissions[1]
    assert list(second.request.output) == UNDISTURBED[:cut]
    assert second.request.attempt == 1
    assert second.avoid == ("a",)


@pytest.mark.parametrize("cut", [0, 1, 3])
async def test_logprobs_come_once_for_each_token_whoever_made_it(make_relay, wire: Wire, cut: int):
    """Those of the prompt too: an attempt that died before its first token takes them with it."""

    def told(index: int) -> TokenLogprobs:
        return TokenLogprobs(-float(index), index + 1, ((index, -0.5),))

    async def run(wire: Wire, to: Submission) -> Receipt | Loss:
        is_first = to.request.attempt == 0
        for index in range(len(to.request.output), cut if is_first else 6):
            judged = replace(event(to, index), logprobs=(told(index),))
            of_prompt = () if index else (None, told(9))
            await wire.send(to, [replace(judged, prompt_logprobs=of_prompt)])
            await wire.arrived()
        return Loss("killed", "died", "a") if is_first else Receipt(6, "length")

    async with aclosing(make_relay(run).generate(REQUEST)) as stream:
        events = [e async for e in stream]
    assert [one for e in events for one in e.logprobs] == [told(index) for index in range(6)]
    assert [e.prompt_logprobs for e in events] == [(None, told(9))] + [()] * 5
    assert len(wire.submissions) == 2


async def test_tokens_that_come_after_the_loss_are_dropped(make_relay):
    """The old engine may live on (unavailable does not prove death): its late, and even wrong, tokens are nobody's."""

    async def dies(wire: Wire, submission: Submission) -> Loss:
        await wire.run(submission, stop_at=2)
        await wire.arrived()
        return Loss("connection lost", "moved")

    async def haunted(wire: Wire, submission: Submission) -> Receipt:
        old = wire.submissions[0]
        for index in range(2, 6):
            await wire.send(old, [replace(event(old, index), tokens=(666,))])
        return await wire.run(submission)

    assert await collect(make_relay(dies, haunted)) == UNDISTURBED


async def test_tokens_of_a_second_epoch_are_dropped(make_relay):
    async def two_epochs(wire: Wire, submission: Submission) -> Receipt:
        await wire.run(submission, stop_at=2, epoch="new")
        await wire.send(submission, [replace(event(submission, 2), tokens=(666,))], epoch="old")
        return await wire.run(replace(submission, request=replace(submission.request, output=(3, 13))), epoch="new")

    assert await collect(make_relay(two_epochs)) == UNDISTURBED


async def test_tokens_with_a_foreign_seal_are_dropped(make_relay):
    async def intruded(wire: Wire, submission: Submission) -> Receipt:
        await wire.send(submission, [replace(event(submission, 0), tokens=(666,))], seal=Seal.new())
        return await wire.run(submission)

    assert await collect(make_relay(intruded)) == UNDISTURBED


async def test_repeated_tokens_are_taken_once(make_relay):
    async def stutters(wire: Wire, submission: Submission) -> Receipt:
        await wire.run(submission, stop_at=2)
        return await wire.run(submission)

    assert await collect(make_relay(stutters)) == UNDISTURBED


async def test_a_gap_is_fetched_again(make_relay, wire: Wire):
    async def skips(wire: Wire, submission: Submission) -> Receipt:
        await wire.send(submission, [event(submission, 0)])
        await wire.send(submission, [event(submission, 2)])
        await asyncio.sleep(30)
        raise AssertionError("the attempt is cancelled before")

    assert await collect(make_relay(skips, undisturbed)) == UNDISTURBED
    assert wire.cancelled == [0]


async def test_missing_last_tokens_are_fetched_again(make_relay, wire: Wire, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(relay_module, "_LATE_TOKENS_S", 0.05)

    async def swallows(wire: Wire, submission: Submission) -> Receipt:
        await wire.run(submission, stop_at=4)
        await wire.arrived()
        return Receipt(6, "length")

    async def brings_all(wire: Wire, submission: Submission) -> Receipt:
        receipt = await wire.run(submission)
        await wire.arrived()
        return receipt

    assert await collect(make_relay(swallows, brings_all)) == UNDISTURBED
    assert len(wire.submissions[1].request.output) == 4


async def test_the_receipt_may_overtake_the_tokens(make_relay, wire: Wire):
    async def overtaken(wire: Wire, submission: Submission) -> Receipt:
        tasks.append(asyncio.create_task(late(wire, submission)))
        return Receipt(6, "length")

    async def late(wire: Wire, submission: Submission) -> None:
        await asyncio.sleep(0.03)
        await wire.run(submission)

    tasks: list[asyncio.Task[None]] = []
    assert await collect(make_relay(overtaken)) == UNDISTURBED
    assert len(wire.submissions) == 1


async def test_what_a_prompt_came_to_is_not_lost_to_a_receipt_that_overtakes_it(make_relay, wire: Wire):
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=0)
    told = (None, TokenLogprobs(-0.5, 2))

    async def overtaken(wire: Wire, submission: Submission) -> Receipt:
        tasks.append(asyncio.create_task(late(wire, submission)))
        return Receipt(0, "length")

    async def late(wire: Wire, submission: Submission) -> None:
        await asyncio.sleep(0.03)
        request = submission.request
        await wire.send(
            submission, [TokenEvent(request.request_id, request.attempt, 0, (), "length", prompt_logprobs=told)]
        )

    tasks: list[asyncio.Task[None]] = []
    (only,) = [one async for one in make_relay(overtaken).generate(replace(REQUEST, sampling=sampling))]
    assert (only.tokens, only.finish, only.prompt_logprobs) == ((), "length", told)


async def test_a_message_that_cannot_be_read_ends_no_other_stream(make_relay, wire: Wire):
    async def garbles(wire: Wire, submission: Submission) -> Receipt:
        await wire.send(submission, [event(submission, 0)])
        await wire.send_bytes(submission, b"of another release")
        await wire.send(submission, [event(submission, index) for index in range(1, 6)])
        return Receipt(6, "length")

    assert await collect(make_relay(garbles)) == UNDISTURBED
    assert len(wire.submissions) == 1


async def test_migrations_are_bounded(make_relay, wire: Wire):
    async def drains(wire: Wire, submission: Submission) -> Loss:
        return Loss("stopped", "moved")

    with pytest.raises(EngineUnavailable, match="stopped"):
        await collect(make_relay(drains, max_migrations=2))
    assert len(wire.submissions) == 3


async def test_a_request_inside_two_dying_engines_fails_alone(make_relay, wire: Wire):
    """It may be what kills them: an orderly move between the deaths does not count, a third engine does not see it."""

    async def dies(wire: Wire, submission: Submission) -> Loss:
        return Loss("killed", "died")

    async def drains(wire: Wire, submission: Submission) -> Loss:
        return Loss("stopped", "moved")

    with pytest.raises(InternalError, match="2 engines died"):
        await collect(make_relay(dies, drains, dies, undisturbed, max_migrations=10))
    assert len(wire.submissions) == 3


async def test_refusals_are_not_migrations(make_relay):
    async def refuses(wire: Wire, submission: Submission) -> Loss:
        return Loss("restarting", "refused")

    assert await collect(make_relay(*[refuses] * 6, undisturbed, max_migrations=0)) == UNDISTURBED


async def test_the_deadline_holds_over_all_attempts(make_relay, wire: Wire):
    async def refuses(wire: Wire, submission: Submission) -> Loss:
        return Loss("restarting", "refused")

    with pytest.raises(DeadlineExceeded):
        await collect(make_relay(refuses, request_timeout_s=0.2))
    assert len(wire.submissions) > 1


async def test_the_deadline_cancels_the_engine(make_relay, wire: Wire):
    async def hangs(wire: Wire, submission: Submission) -> Receipt:
        await asyncio.sleep(30)
        raise AssertionError

    with pytest.raises(DeadlineExceeded):
        await collect(make_relay(hangs, request_timeout_s=0.05))
    await asyncio.sleep(0)
    assert wire.cancelled == [0]


async def test_closing_a_stream_cancels_the_engine(make_relay, wire: Wire, inbox: Inbox):
    async def endless(wire: Wire, submission: Submission) -> Receipt:
        await wire.run(submission, stop_at=2)
        await asyncio.sleep(30)
        raise AssertionError

    async with aclosing(make_relay(endless).generate(REQUEST)) as events:
        assert [(await anext(events)).tokens, (await anext(events)).tokens] == [(3,), (13,)]
    await asyncio.sleep(0)
    assert wire.cancelled == [0]
    assert not inbox._feeds


async def test_an_error_of_ours_is_the_clients(make_relay):
    async def invalid(wire: Wire, submission: Submission) -> Receipt:
        raise InvalidRequest("the prompt does not fit", param="prompt")

    with pytest.raises(InvalidRequest, match="does not fit"):
        await collect(make_relay(invalid))


async def test_an_overloaded_engine_is_not_tried_again(make_relay, wire: Wire):
    async def full(wire: Wire, submission: Submission) -> Receipt:
        raise Overloaded("too many requests wait; try again later")

    with pytest.raises(Overloaded):
        await collect(make_relay(full, undisturbed))
    assert len(wire.submissions) == 1


def test_the_replica_that_failed_last_is_gone_round() -> None:
    journal = Journal(REQUEST, "ours")
    avoided = [journal.avoid]
    for replica in ("a", "b", None):
        journal.note(Loss("restarting", "refused", replica))
        avoided.append(journal.avoid)
    assert avoided == [(), ("a",), ("b",), ()]


async def test_a_foreign_error_is_a_move(make_relay, wire: Wire, caplog: pytest.LogCaptureFixture):
    """What Ray raises of its own says something of the call, not of the request; and nothing to a client."""

    async def broken(wire: Wire, submission: Submission) -> Receipt:
        await wire.run(submission, stop_at=2)
        await wire.arrived()
        raise ZeroDivisionError("oops")

    assert await collect(make_relay(broken, undisturbed)) == UNDISTURBED
    with pytest.raises(EngineUnavailable, match=r"last: the replica call failed\); try again") as caught:
        await collect(make_relay(broken, max_migrations=0))
    assert "oops" not in caught.value.message
    assert "oops" in caplog.text


async def test_a_call_that_somebody_else_cancels_is_a_move(make_relay, wire: Wire):
    async def cancelled(wire: Wire, submission: Submission) -> Receipt:
        raise asyncio.CancelledError

    assert await collect(make_relay(cancelled, undisturbed)) == UNDISTURBED
    assert len(wire.submissions) == 2


async def test_a_stream_ends_with_its_receipt_once_every_token_is_here(make_relay, wire: Wire):
    """The end may come in an event without tokens, and that one may be lost."""

    async def loses_the_end(wire: Wire, submission: Submission) -> Receipt:
        for index in range(6):
            await wire.send(submission, [replace(event(submission, index), finish=None)])
        await wire.arrived()
        return Receipt(6, "length")

    assert await collect(make_relay(loses_the_end)) == UNDISTURBED
    assert len(wire.submissions) == 1


async def test_requests_with_the_same_name_do_not_meet(make_relay):
    """A client may use an id twice; the engines never see it."""
    relay = make_relay(undisturbed)
    streams = [collect(relay, replace(REQUEST, prompt=(i,))) for i in range(20)]
    for i, ids in enumerate(await asyncio.gather(*streams)):
        assert ids == [i + 10 * p for p in range(6)]


async def encodes(wire: Wire, submission: Submission) -> Receipt:
    return Receipt(0, "stop", ROWS)


async def test_an_encoded_prompt_comes_in_the_receipt(make_relay, wire: Wire):
    assert await make_relay(encodes).encode(TO_ENCODE) == ROWS
    (submission,) = wire.submissions
    assert submission.reply_to is None
    assert (submission.request.prompt, submission.request.pooling, submission.request.attempt) == ((1, 2), "mean", 4)
    assert wire.cancelled == []


async def test_a_lost_replica_is_not_noticed_by_who_encodes(make_relay, wire: Wire):
    async def dies(wire: Wire, submission: Submission) -> Loss:
        return Loss("killed", "died", replica="a")

    async def broken(wire: Wire, submission: Submission) -> Receipt:
        raise ZeroDivisionError("oops")

    async def refuses(wire: Wire, submission: Submission) -> Loss:
        return Loss("restarting", "refused")

    assert await make_relay(dies, broken, refuses, encodes).encode(TO_ENCODE) == ROWS
    assert [s.request.attempt for s in wire.submissions] == [4, 5, 6, 7]
    assert len({s.request.request_id for s in wire.submissions}) == 1
    assert wire.submissions[1].avoid == ("a",)


async def test_an_answer_without_rows_is_a_move(make_relay, wire: Wire):
    async def cancels(wire: Wire, submission: Submission) -> Receipt:
        return Receipt(0, "cancelled")

    assert await make_relay(cancels, encodes).encode(TO_ENCODE) == ROWS
    with pytest.raises(EngineUnavailable, match="instead of rows"):
        await make_relay(cancels, max_migrations=0).encode(TO_ENCODE)


async def test_encode_requests_have_the_bounds_of_generations(make_relay, wire: Wire):
    async def dies(wire: Wire, submission: Submission) -> Loss:
        return Loss("killed", "died")

    async def drains(wire: Wire, submission: Submission) -> Loss:
        return Loss("stopped", "moved")

    with pytest.raises(InternalError, match="2 engines died"):
        await make_relay(dies, dies, encodes).encode(TO_ENCODE)
    with pytest.raises(EngineUnavailable, match="lost 2 times"):
        await make_relay(drains, max_migrations=1).encode(TO_ENCODE)


async def test_the_deadline_ends_an_encode_request_and_its_engine(make_relay, wire: Wire):
    async def hangs(wire: Wire, submission: Submission) -> Receipt:
        await asyncio.sleep(30)
        raise AssertionError

    with pytest.raises(DeadlineExceeded):
        await make_relay(hangs, request_timeout_s=0.05).encode(TO_ENCODE)
    await asyncio.sleep(0)
    assert wire.cancelled == [4]


async def test_cancelling_an_encode_request_cancels_the_engine(make_relay, wire: Wire, inbox: Inbox):
    async def hangs(wire: Wire, submission: Submission) -> Receipt:
        await asyncio.sleep(30)
        raise AssertionError

    call = asyncio.create_task(make_relay(hangs).encode(TO_ENCODE))
    while not wire.submissions:
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0)
    assert wire.cancelled == [4]
    assert not inbox._feeds


async def test_an_error_of_ours_reaches_who_encodes(make_relay, wire: Wire):
    async def invalid(wire: Wire, submission: Submission) -> Receipt:
        raise InvalidRequest("the prompt does not fit", param="prompt")

    with pytest.raises(InvalidRequest, match="does not fit"):
        await make_relay(invalid, encodes).encode(TO_ENCODE)
    assert len(wire.submissions) == 1
