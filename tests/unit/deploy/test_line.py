"""The line between a replica and its rank 0: a courier at one end, an engine loop at the other, in one process.

The engine is arithmetic: each step gives every request one token, the sum of its prompt + 10 * its index. An encode
request has one row of one number, which is its first byte: the sum of its prompt.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import zmq

from glm_cluster.deploy.channel import Loss, Receipt, Report, ReturnAddress, Seal, Submission, Tokens
from glm_cluster.deploy.core import EngineLoop, Outlets
from glm_cluster.deploy.courier import Courier
from glm_cluster.engine.scheduler import Failure
from glm_cluster.errors import EngineUnavailable, InternalError, InvalidRequest, Overloaded
from glm_cluster.records import (
    Encoded,
    EncodeRequest,
    GenerationRequest,
    ReplicaLoad,
    SamplingParams,
    TokenEvent,
)

LOCAL = "127.0.0.1"
UNLUCKY = 13  # sum of a prompt that the engine has a defect for
LOSS = Loss("over", "moved")


@dataclass
class ArithmeticEngine:
    """One token for everybody, each step of `step_s`."""

    step_s: float = 0.0
    room: int = 1000  # requests it takes
    num_steps: int = 0
    running: dict[tuple[str, int], list[GenerationRequest | EncodeRequest | int]] = field(default_factory=dict)
    cancelled: list[tuple[str, int]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def add(self, request: GenerationRequest | EncodeRequest) -> None:
        if not request.prompt:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if len(self.running) >= self.room:
            raise Overloaded("too many requests wait; try again later")
        if sum(request.prompt) == UNLUCKY:
            raise ZeroDivisionError("a defect")
        output = request.output if isinstance(request, GenerationRequest) else ()
        self.running[request.request_id, request.attempt] = [request, len(output)]

    def cancel(self, request_id: str, attempt: int) -> None:
        self.cancelled.append((request_id, attempt))
        self.running.pop((request_id, attempt), None)

    def step(self) -> list[TokenEvent]:
        time.sleep(self.step_s)
        self.num_steps += 1
        events = []
        for key, (request, index) in list(self.running.items()):
            if isinstance(request, EncodeRequest):
                row = Encoded(1, 1, bytes([sum(request.prompt), 0, 0, 0]), len(request.prompt))
                events.append(TokenEvent(*key, 0, (), "stop", 0, row))
                del self.running[key]
                continue
            finish = "length" if index + 1 == request.sampling.max_tokens else None
            events.append(TokenEvent(*key, index, (sum(request.prompt) + 10 * index,), finish))
            self.running[key][1] = index + 1
            if finish:
                del self.running[key]
        return events

    def take_failures(self) -> list[Failure]:
        taken = []
        while self.failures:  # a test adds to them from another thread
            taken.append(self.failures.pop(0))
            self.running.pop((taken[-1].request_id, taken[-1].attempt), None)
        return taken

    def load(self) -> ReplicaLoad:
        return ReplicaLoad(num_waiting=0, num_running=len(self.running), num_free_blocks=9, num_blocks=10)


class Ingress:
    """A bound inbox, read by hand."""

    def __init__(self, context: zmq.Context) -> None:
        self.socket = context.socket(zmq.PULL)
        port = self.socket.bind_to_random_port(f"tcp://{LOCAL}")
        self.seal = Seal.new()
        self.address = ReturnAddress(f"tcp://{LOCAL}:{port}", self.seal.key)

    def messages(self, num_events: int) -> list[Tokens]:
        """What comes, up to so many events."""
        got: list[Tokens] = []
        while sum(len(tokens.events) for tokens in got) < num_events:
            assert self.is_ready(30_000), got
            body = self.seal.open(self.socket.recv())
            assert body is not None
            got.append(Tokens.unpack(body))
        return got

    def is_ready(self, timeout_ms: int) -> bool:
        """Whether a message comes within so long."""
        return bool(self.socket.poll(timeout_ms))


@pytest.fixture
def engine() -> ArithmeticEngine:
    return ArithmeticEngine()


@pytest.fixture
def reports() -> list[Report]:
    return []


@pytest.fixture
async def courier(
    context: zmq.Context, engine: ArithmeticEngine, reports: list[Report], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Courier]:
    monkeypatch.setattr("glm_cluster.deploy.core.HEARTBEAT_S", 0.05)
    courier = Courier(LOCAL)
    orders, outgoing = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    orders.connect(courier.orders_endpoint)
    outgoing.connect(courier.reports_endpoint)
    outlets = Outlets(context, "epoch")
    loop = EngineLoop(engine, orders=orders, reports=outgoing, outlets=outlets, seal=courier.seal)
    stop = threading.Event()

    def turn() -> None:
        while not stop.is_set():
            loop.turn()

    thread = threading.Thread(target=turn)
    thread.start()
    courier.start(reports.append)
    yield courier
    stop.set()
    await asyncio.to_thread(thread.join)
    await courier.close(LOSS)


@pytest.fixture
def ingress(context: zmq.Context) -> Ingress:
    return Ingress(context)


def submission(
    name: str, to: ReturnAddress | None, *, prompt: tuple[int, ...] = (1, 2), max_tokens: int = 4, attempt: int = 0
):
    sampling = SamplingParams(max_tokens=max_tokens)
    return Submission(GenerationRequest(request_id=name, prompt=prompt, sampling=sampling, attempt=attempt), to)


async def all_is_taken(courier: Courier) -> None:
    """Return once the engine has every order given so far: they come in order."""
    await courier.submit(submission("probe", None, max_tokens=1))


@pytest.mark.timeout(30)
def test_the_first_turn_reports_at_once(
    context: zmq.Context, engine: ArithmeticEngine, monkeypatch: pytest.MonkeyPatch
):
    """A group is ready when its replica hears of it: every start once took a whole heartbeat longer."""
    monkeypatch.setattr("glm_cluster.deploy.core.HEARTBEAT_S", 3600.0)
    orders, outgoing, heard = context.socket(zmq.PULL), context.socket(zmq.PUSH), context.socket(zmq.PULL)
    orders.bind("inproc://orders")
    heard.bind("inproc://reports")
    outgoing.connect("inproc://reports")
    outlets = Outlets(context, "epoch")
    EngineLoop(engine, orders=orders, reports=outgoing, outlets=outlets, seal=Seal.new()).turn()
    assert heard.poll(0)


async def test_a_submission_ends_with_a_receipt_and_its_tokens(courier: Courier, ingress: Ingress):
    assert await courier.submit(submission("r", ingress.address)) == Receipt(4, "length")
    messages = await asyncio.to_thread(ingress.messages, 4)
    events = [event for tokens in messages for event in tokens.events]
    assert [e.tokens[0] for e in events] == [3, 13, 23, 33]
    assert [e.start for e in events] == [0, 1, 2, 3]
    assert {tokens.epoch for tokens in messages} == {"epoch"}


async def test_rows_come_in_the_receipt_and_by_no_other_way(courier: Courier, ingress: Ingress):
    request = EncodeRequest(request_id="e", prompt=(1, 2, 3), pooling="last")
    receipt = await courier.submit(Submission(request, None))
    assert receipt == Receipt(0, "stop", Encoded(1, 1, bytes([6, 0, 0, 0]), 3))
    assert not await asyncio.to_thread(ingress.is_ready, 200)


async def test_encode_and_generate_requests_share_a_line(courier: Courier, ingress: Ingress):
    encode = EncodeRequest(request_id="e", prompt=(7,), pooling="mean", attempt=1)
    ends = await asyncio.gather(
        courier.submit(submission("r", ingress.address)), courier.submit(Submission(encode, None))
    )
    assert [end.num_tokens for end in ends] == [4, 0]
    assert ends[1].encoded is not None


async def test_one_message_per_step_and_ingress(courier: Courier, context: zmq.Context, engine: ArithmeticEngine):
    engine.step_s = 0.01
    one, other = Ingress(context), Ingress(context)
    ends = [courier.submit(submission(f"r{i}", (one, other)[i % 2].address, max_tokens=5)) for i in range(10)]
    await asyncio.gather(*ends)
    for ingress in (one, other):
        messages = await asyncio.to_thread(ingress.messages, 25)
        assert sum(len(m.events) for m in messages) == 25
        assert len(messages) <= 6  # five steps; the first requests may be a step ahead


async def test_a_refusal_is_raised_and_the_engine_lives_on(courier: Courier, ingress: Ingress):
    with pytest.raises(InvalidRequest, match="empty") as caught:
        await courier.submit(submission("bad", ingress.address, prompt=()))
    assert caught.value.param == "prompt"
    assert await courier.submit(submission("good", ingress.address)) == Receipt(4, "length")


async def test_a_request_that_fails_under_way_raises_and_the_engine_lives_on(
    courier: Courier, engine: ArithmeticEngine, ingress: Ingress
):
    """What the tokens so far had shown, stands; nothing more comes."""
    engine.step_s = 0.02  # nobody ends before the failure
    failing = asyncio.create_task(courier.submit(submission("bad", ingress.address, max_tokens=1000)))
    good = asyncio.create_task(courier.submit(submission("good", ingress.address, max_tokens=2000)))
    while len(engine.running) < 2:
        await asyncio.sleep(0.001)
    engine.failures.append(Failure("bad", 0, InternalError("the grammar leads no further")))
    engine.step_s = 0.0
    with pytest.raises(InternalError, match="no further"):
        await failing
    assert (await good).num_tokens == 2000


async def test_too_many_requests_is_said_as_such(courier: Courier, engine: ArithmeticEngine, ingress: Ingress):
    engine.room = 0
    with pytest.raises(Overloaded):
        await courier.submit(submission("r", ingress.address))


async def test_a_defect_costs_one_request(
    courier: Courier, engine: ArithmeticEngine, ingress: Ingress, caplog: pytest.LogCaptureFixture
):
    """An engine that fails in a way nobody foresaw, while it takes a request, goes on with the others."""
    engine.step_s = 0.005
    neighbour = asyncio.create_task(courier.submit(submission("neighbour", ingress.address, max_tokens=40)))
    with pytest.raises(InternalError, match="failed on the request") as caught:
        await courier.submit(submission("unlucky", ingress.address, prompt=(UNLUCKY,)))
    assert "a defect" not in caught.value.message
    assert "a defect" in caplog.text
    assert await neighbour == Receipt(40, "length")


async def test_a_request_that_no_message_can_hold_harms_no_other(
    courier: Courier, ingress: Ingress, caplog: pytest.LogCaptureFixture
):
    """Orders of many callers share a message; one that could not be packed once took the sender down with it."""
    calls = [submission("too big", ingress.address, prompt=(2**64,)), submission("good", ingress.address)]
    bad, good = await asyncio.gather(*map(courier.submit, calls), return_exceptions=True)
    assert isinstance(bad, InternalError)
    assert bad.message == "the request cannot be sent to its engine; the log says why, please report it"
    assert "Error: " in caplog.text
    assert good == Receipt(4, "length")
    assert not any(task.done() for task in courier.tasks)


async def test_the_next_attempt_takes_over(courier: Courier, engine: ArithmeticEngine, ingress: Ingress):
    """Whoever makes attempt 1 has given attempt 0 up, even where its cancellation was lost."""
    engine.step_s = 0.005
    old = asyncio.create_task(courier.submit(submission("r", ingress.address, max_tokens=100_000)))
    other = asyncio.create_task(courier.submit(submission("other", ingress.address, max_tokens=60)))
    await asyncio.sleep(0.1)
    assert await courier.submit(submission("r", ingress.address, attempt=1)) == Receipt(4, "length")
    assert engine.cancelled == [("r", 0)]
    with pytest.raises(EngineUnavailable):
        await old
    assert await other == Receipt(60, "length")


async def test_an_attempt_is_taken_once(courier: Courier, ingress: Ingress):
    """Ray may send a call twice; the second must not disturb the first."""
    first = asyncio.create_task(courier.submit(submission("r", ingress.address, max_tokens=20)))
    await asyncio.sleep(0)
    assert isinstance(await courier.submit(submission("r", ingress.address, max_tokens=20)), Loss)
    assert await first == Receipt(20, "length")


async def test_cancelling_a_call_cancels_the_request(courier: Courier, engine: ArithmeticEngine, ingress: Ingress):
    engine.step_s = 0.005
    call = asyncio.create_task(courier.submit(submission("r", ingress.address, max_tokens=100_000)))
    while not engine.has_work:
        await asyncio.sleep(0.001)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await all_is_taken(courier)
    assert engine.cancelled == [("r", 0)]
    assert not engine.has_work


async def test_a_call_cancelled_at_once_never_runs(courier: Courier, engine: ArithmeticEngine, ingress: Ingress):
    call = asyncio.create_task(courier.submit(submission("r", ingress.address, max_tokens=100_000)))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await all_is_taken(courier)
    assert not engine.has_work


async def test_arrivals_at_once_are_few_submissions(
    courier: Courier, engine: ArithmeticEngine, ingress: Ingress, reports: list[Report]
):
    """64 requests that come one by one within a few steps reach the engine in a handful of batches."""
    engine.step_s = 0.02

    async def arrive(i: int) -> None:
        await asyncio.sleep(i * 0.001)
        await courier.submit(submission(f"r{i}", ingress.address, max_tokens=20))

    await asyncio.gather(*(arrive(i) for i in range(64)))
    batches = [size for report in reports for size in report.batches]
    assert sum(batches) == 64
    assert len(batches) <= 12


async def test_an_idle_loop_is_heard(courier: Courier, reports: list[Report]):
    while len(reports) < 2:
        await asyncio.sleep(0.001)
    assert reports[-1].steps == 0
    assert reports[-1].load.num_free_blocks == 9


async def test_steps_are_counted(courier: Courier, reports: list[Report]):
    await courier.submit(submission("probe", None, max_tokens=3))
    assert reports[-1].steps == 3


async def test_closing_ends_open_calls_with_the_loss(context: zmq.Context):
    courier = Courier(LOCAL)
    courier.start(lambda report: None)
    call = asyncio.create_task(courier.submit(submission("r", None)))
    await asyncio.sleep(0.01)
    loss = Loss("rank 1 died", "died", replica="a")
    await courier.close(loss)
    assert await call == loss
    assert await courier.submit(submission("late", None)) == loss


async def test_a_line_that_breaks_is_seen(courier: Courier, context: zmq.Context, engine: ArithmeticEngine):
    """A report that cannot be read ends a task that the group watches; it does not leave callers waiting for ever."""
    poser = context.socket(zmq.PUSH)
    poser.connect(courier.reports_endpoint)
    poser.send(courier.seal.close(b"not a report"))
    done, _ = await asyncio.wait(courier.tasks, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    assert done.pop().exception() is not None


async def test_a_dead_ingress_never_stops_a_step(
    courier: Courier, context: zmq.Context, ingress: Ingress, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("glm_cluster.deploy.core._QUEUED_MESSAGES", 3)
    gone = Ingress(context)
    gone.socket.close(linger=0)
    lost = asyncio.create_task(courier.submit(submission("lost", gone.address, max_tokens=500)))
    assert await courier.submit(submission("kept", ingress.address, max_tokens=300)) == Receipt(300, "length")
    assert await lost == Receipt(500, "length")


async def test_orders_with_a_foreign_seal_are_not_taken(
    courier: Courier, context: zmq.Context, engine: ArithmeticEngine, reports: list[Report]
):
    """The replica binds and rank 0 connects, so a stranger can only pose as rank 0: its reports must not count."""
    stranger = context.socket(zmq.PUSH)
    stranger.connect(courier.reports_endpoint)
    fake = Report(10**6, engine.load(), (), ())
    stranger.send(Seal.new().close(fake.pack()))
    while not reports:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.2)
    assert max(report.steps for report in reports) == 0
