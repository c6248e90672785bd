"""What Ray answers, put into our words; and a cancellation that arrives whatever state the call is in."""

import asyncio
from collections.abc import Generator
from typing import Any

import grpc
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError
from ray.serve._private.common import DeploymentID, RequestMetadata
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentResponse

from glm_cluster.deploy import fleet
from glm_cluster.deploy.channel import Loss, Receipt, Submission
from glm_cluster.deploy.fleet import Fleet
from glm_cluster.errors import GlmError, Overloaded
from glm_cluster.records import GenerationRequest, ReplicaLoad, SamplingParams

SUBMISSION = Submission(
    GenerationRequest(request_id="r", prompt=(1,), sampling=SamplingParams(max_tokens=1)), reply_to=None
)


class Response:
    """A call's answer, or its end."""

    def __init__(self, end: BaseException | Receipt) -> None:
        self._end = end
        self.cancelled = False

    def __await__(self) -> Generator[Any, None, Receipt]:
        yield from asyncio.sleep(0).__await__()
        if isinstance(self._end, BaseException):
            raise self._end
        return self._end

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """As much of a Serve handle as the fleet uses."""

    deployment_id = "the replicas"

    def __init__(self, response: Any) -> None:
        self._response = response
        self.run = self.probe = self
        self.asked: list[tuple[Any, ...]] = []

    def remote(self, *args: Any) -> Any:
        self.asked.append(args)
        return self._response


def failed_with(cause: Exception) -> RayTaskError:
    return RayTaskError("run", "a traceback", cause)


async def test_an_answer_is_passed_on():
    assert await Fleet(Handle(Response(Receipt(1, "length")))).submit(SUBMISSION) == Receipt(1, "length")


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (ActorDiedError(), "died"),
        (ActorUnavailableError("connection reset", None), "moved"),
        (failed_with(ZeroDivisionError("oops")), "moved"),
        (asyncio.CancelledError(), "moved"),  # somebody cancelled the replica's task
    ],
)
async def test_a_failed_call_is_a_loss(end: BaseException, kind: str):
    loss = await Fleet(Handle(Response(end))).submit(SUBMISSION)
    assert isinstance(loss, Loss)
    assert loss.kind == kind


@pytest.mark.parametrize(
    "end",
    [
        ActorUnavailableError("connection to 10.0.0.7:6379 reset", b"sixteen bytes id"),
        failed_with(ZeroDivisionError("10.0.0.7:6379")),
        RayError("10.0.0.7:6379"),
    ],
)
async def test_what_ray_says_goes_into_the_log_and_no_further(end: RayError, caplog: pytest.LogCaptureFixture):
    loss = await Fleet(Handle(Response(end))).submit(SUBMISSION)
    assert isinstance(loss, Loss)
    assert "10.0.0.7" not in loss.reason
    assert "10.0.0.7" in caplog.text


async def test_an_unreachable_replica_is_told_to_stop():
    response = Response(ActorUnavailableError("connection reset", None))
    await Fleet(Handle(response)).submit(SUBMISSION)
    assert response.cancelled


@pytest.mark.parametrize("wrap", [failed_with, lambda error: failed_with(error).as_instanceof_cause(), lambda e: e])
async def test_an_error_of_ours_arrives_as_itself(wrap: Any):
    with pytest.raises(Overloaded, match="full") as caught:
        await Fleet(Handle(Response(wrap(Overloaded("full"))))).submit(SUBMISSION)
    assert isinstance(caught.value, GlmError)


async def test_an_error_of_grpcs_own_is_left_to_the_relay():
    error = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata())
    with pytest.raises(grpc.aio.AioRpcError):
        await Fleet(Handle(Response(error))).submit(SUBMISSION)


class Assigned:
    """What Serve's router makes of a call: the replica's side, which runs until it is cancelled."""

    def __init__(self) -> None:
        self._end = asyncio.get_running_loop().create_future()

    async def get_async(self) -> Receipt:
        return await asyncio.shield(self._end)

    def cancel(self) -> None:
        self._end.cancel()

    @property
    def cancelled(self) -> bool:
        return self._end.cancelled()


@pytest.mark.parametrize("ticks", range(12))
async def test_a_cancellation_is_never_forgotten(ticks: int):
    """Ray's own response forgets one that falls into the tick in which the call is assigned: `ticks` sweeps over it."""
    replica_side = Assigned()

    async def assign() -> Assigned:
        try:
            for _ in range(5):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            replica_side.cancel()
            raise
        return replica_side

    metadata = RequestMetadata(request_id="r", internal_request_id="r")
    response = DeploymentResponse(asyncio.ensure_future(assign()), metadata, _is_router_running_in_separate_loop=False)
    call = asyncio.ensure_future(Fleet(Handle(response)).submit(SUBMISSION))
    for _ in range(ticks):
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    for _ in range(20):
        await asyncio.sleep(0)
    assert replica_side.cancelled or not ticks  # before its first tick the call was never made


@pytest.mark.parametrize(
    ("end", "is_well"),
    [
        (True, True),
        (False, False),
        (ActorDiedError(), False),
        (failed_with(Overloaded("full")), False),
        (DeploymentUnavailableError(DeploymentID("m")), False),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), False),
        (RequestCancelledError("r"), False),
        (grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata()), False),
        (RuntimeError("the router is gone"), False),
        (asyncio.CancelledError(), False),  # somebody cancelled the replica's task
    ],
)
async def test_an_engine_is_alive_or_ready_if_its_replica_says_so(end: Any, is_well: bool):
    handle = Handle(Response(end))
    assert await Fleet(handle).alive() is is_well
    assert await Fleet(handle).ready() is is_well
    assert handle.asked == [(False,), (True,)]  # the second wants a step


async def test_however_many_ask_one_probe_is_sent():
    """Anyone may ask, and each answer of an idle engine costs it a step."""
    handle = Handle(Response(True))
    asked = Fleet(handle)
    assert await asyncio.gather(*(asked.ready() for _ in range(50))) == [True] * 50
    assert await asked.ready()
    assert handle.asked == [(True,)]


async def test_a_replica_that_does_not_answer_is_not_ready(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fleet, "_PROBE_S", 0.01)
    assert await Fleet(Handle(asyncio.get_running_loop().create_future())).ready() is False


async def test_loads_are_the_routers_which_the_first_call_makes(monkeypatch: pytest.MonkeyPatch):
    load = ReplicaLoad(num_waiting=1, num_running=2, num_free_blocks=3, num_blocks=4)
    handle = Handle(Response(True))
    known = {"the replicas": [load]}
    monkeypatch.setattr(fleet, "known_loads", lambda name: known[name] if handle.asked else None)
    assert await Fleet(handle).loads() == [load]
    assert await Fleet(handle).loads() == [load]
    assert handle.asked == [(False,)]
