"""Hostile requests by the hundred: each gets its answer, and a neighbour's stream has the ids it has alone."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from google.protobuf.message import Message
from support import hostile_sockets
from support.cluster import INGRESS, RANK, Case, RunningCluster, eventually, stream_ids
from support.hostile_bodies import CHAT, COMPLETIONS, TEMPLATE, Attack, attacks
from support.hostile_messages import heavy, twin

from glm_cluster.api.proto import glm_pb2, glm_pb2_grpc

MakeCases = Callable[..., list[Case]]
AT_ONCE = 8
HANGS_S = 60
GROWTH_BYTES = 640 << 20  # a body of 4 MiB is 100 MiB of lists, and allocators keep what they had
ATTACKS = list(attacks())
CODES = {
    200: grpc.StatusCode.OK,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@pytest.fixture(scope="module")
def cluster(
    start_cluster: Callable[..., RunningCluster],
    settings: Callable[..., dict[str, Any]],
    tiny: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> RunningCluster:
    """The tiny model with a template that takes tools and a variable."""
    model = tmp_path_factory.mktemp("hostile") / "model"
    shutil.copytree(tiny, model)
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return start_cluster(settings(model=str(model)))


@pytest.fixture
def long_case(cases: MakeCases) -> Case:
    """A neighbour: one token at a time, so that it is there for long."""
    (case,) = cases(1, seed=6, max_tokens=(600, 600))
    return case.token_by_token()


@pytest.fixture(autouse=True)
def unharmed(cluster: RunningCluster) -> Iterator[None]:
    """The same processes are there after a test, with every block free and bounded memory."""
    (rank,), (front,) = cluster.processes(RANK), cluster.processes(INGRESS)
    before = front.memory_info().rss
    yield

    def idle() -> bool:
        (load,) = cluster.ask("loads")
        return load["num_running"] == load["num_waiting"] == 0 and load["num_free_blocks"] == load["num_blocks"]

    eventually(idle, "every block is free")
    assert cluster.processes(RANK) == [rank]
    assert cluster.processes(INGRESS) == [front]
    assert all(process.status() != psutil.STATUS_ZOMBIE for process in (rank, front))
    assert front.memory_info().rss - before < GROWTH_BYTES


@asynccontextmanager
async def neighbour(cluster: RunningCluster, case: Case) -> AsyncIterator[None]:
    """Someone who streams the same answer again and again, and gets it every time."""
    leaving = asyncio.Event()

    async def stream() -> None:
        async with httpx.AsyncClient(base_url=cluster.http_url, timeout=120) as client:
            while True:
                assert tuple(await stream_ids(client, case)) == case.expected
                if leaving.is_set():
                    return

    streaming = asyncio.create_task(stream())
    try:
        yield
        assert not streaming.done(), "the neighbour's stream broke"
    finally:
        leaving.set()
        await streaming


async def all_of(work: list[Any], *, at_once: int = AT_ONCE) -> list[Any]:
    """What the coroutines return, a few of them at a time."""
    room = asyncio.Semaphore(at_once)

    async def one(coroutine: Any) -> Any:
        async with room:
            return await coroutine

    return await asyncio.gather(*map(one, work))


async def test_hostile_bodies_are_answered(cluster: RunningCluster, long_case: Case) -> None:
    async def fault(client: httpx.AsyncClient, attack: Attack) -> str | None:
        """What is wrong with the answer."""
        try:
            response = await client.post(attack.path, content=attack.content, timeout=HANGS_S)
        except httpx.HTTPError as error:
            return f"{attack.name}: {error!r}"
        if response.status_code not in attack.statuses:
            return f"{attack.name}: {response.status_code} {response.text[:200]}"
        if response.status_code != 200 and len(error := response.json()["error"]["message"]) > 2048:
            return f"{attack.name}: a message of {len(error)} characters"
        return None

    async with neighbour(cluster, long_case), httpx.AsyncClient(base_url=cluster.http_url) as client:
        faults = await all_of([fault(client, attack) for attack in ATTACKS])
    assert not [fault for fault in faults if fault]


async def test_their_twins_over_grpc_are_answered_alike(cluster: RunningCluster, long_case: Case) -> None:
    twins = [(attack, message) for attack in ATTACKS if (message := twin(attack)) is not None]
    assert len(twins) > len(ATTACKS) / 3

    async def fault(stub: glm_pb2_grpc.GlmStub, attack: Attack, message: Message) -> str | None:
        code, details = await outcome(stub, message)
        expected = [CODES[status] for status in attack.statuses]
        return None if code in expected else f"{attack.name}: {code.name} {details[:200]}"

    async with neighbour(cluster, long_case), grpc.aio.insecure_channel(cluster.grpc_address) as channel:
        stub = glm_pb2_grpc.GlmStub(channel)
        faults = await all_of([fault(stub, attack, message) for attack, message in twins])
    assert not [fault for fault in faults if fault]


async def outcome(stub: glm_pb2_grpc.GlmStub, message: Message) -> tuple[grpc.StatusCode, str]:
    """How a call ends."""
    try:
        if isinstance(message, glm_pb2.ChatRequest):
            await stub.Chat(message, timeout=HANGS_S)
        else:
            async for _ in stub.Generate(message, timeout=HANGS_S):
                pass
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


async def test_hostile_http_is_refused_before_it_does_anything(cluster: RunningCluster, long_case: Case) -> None:
    async def fault(name: str, request: bytes) -> str | None:
        try:
            came = await asyncio.wait_for(hostile_sockets.answer(address(cluster), request), HANGS_S)
        except TimeoutError:
            return f"{name}: no answer"
        if b"\r\nx-evil" in came.lower():
            return f"{name}: a header of the client's came back"
        status = came.split(b" ", 2)[1] if came.startswith(b"HTTP/") else b"closed"
        return f"{name}: {came[:200]!r}" if status.startswith(b"5") and status != b"501" else None

    async with neighbour(cluster, long_case):
        faults = await all_of([fault(name, request) for name, request in hostile_sockets.requests()])
    assert not [fault for fault in faults if fault]


async def test_hostile_bytes_over_grpc_break_one_call(cluster: RunningCluster, long_case: Case) -> None:
    """What is no message is refused by the server below us."""
    whole = glm_pb2.GenerateRequest(model="tiny", token_ids={"ids": [5]}, max_tokens=1).SerializeToString()
    refused = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT)
    async with neighbour(cluster, long_case), grpc.aio.insecure_channel(cluster.grpc_address) as channel:
        call = channel.unary_stream("/glm_cluster.v1.Glm/Generate", None, None)
        for message in (b"", b"\xff" * 50, bytes(range(256)), b"\n\x02\xff\xfe", whole[:-1], b"\x0b" * 10**6):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                assert [chunk async for chunk in call(message, timeout=HANGS_S)] == []
            assert caught.value.code() in refused
        assert [chunk async for chunk in call(whole, timeout=HANGS_S)]


async def test_heavy_messages_are_refused(cluster: RunningCluster, long_case: Case) -> None:
    options = [("grpc.max_send_message_length", -1)]
    async with (
        neighbour(cluster, long_case),
        grpc.aio.insecure_channel(cluster.grpc_address, options=options) as channel,
    ):
        call = channel.unary_unary("/glm_cluster.v1.Glm/Chat", None, None)
        for name, message in heavy():
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(message, timeout=HANGS_S)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, (name, caught.value.details())


def address(cluster: RunningCluster) -> tuple[str, int]:
    host, port = cluster.http_url.removeprefix("http://").split(":")
    return host, int(port)


LONG: dict[str, Any] = {"model": "tiny", "prompt": [*range(40, 90)], "max_tokens": 900, "ignore_eos": True}
STAGES: dict[str, dict[str, Any]] = {
    "queued or running": {**LONG, "n": 4},
    "streaming": {**LONG, "stream": True},
    "many prompts": {**LONG, "prompt": [[i + 2] * 100 for i in range(32)], "stream": True},
    "tokenising": {**LONG, "prompt": "hello " * 150_000},
    "parsing": {**LONG, "prompt": [5] * 1_000_000},
    "compiling": {**LONG, "ignore_eos": False, "structured_outputs": {"regex": "(.*a.{15}b)|(.*c.{15}d)|(.*e.{20}f)"}},
    "rendering": {"model": "tiny", "messages": [{"role": "user", "content": "a" * 1_000_000}]},
}


@pytest.mark.parametrize("stage", STAGES)
async def test_clients_go_away_at_every_stage(cluster: RunningCluster, long_case: Case, stage: str) -> None:
    body = json.dumps(STAGES[stage]).encode()
    path = CHAT if "messages" in STAGES[stage] else COMPLETIONS
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    whole = head + body
    cuts = (0, len(head) // 2, len(head), len(head) + len(body) // 2, len(whole))
    async with neighbour(cluster, long_case):
        await all_of(
            [
                hostile_sockets.leave(address(cluster), whole[:cut], after_s=after_s, rudely=rudely)
                for cut in cuts
                for after_s in (0.0, 0.01, 0.1)
                for rudely in (False, True)
            ]
        )


async def test_calls_are_cancelled_at_every_stage(cluster: RunningCluster, long_case: Case) -> None:
    messages = [
        message
        for name, body in STAGES.items()
        if (message := twin(Attack(name=name, path=COMPLETIONS, body=without_stream(body)))) is not None
    ]

    async def leave(stub: glm_pb2_grpc.GlmStub, message: Message, after_s: float) -> None:
        call = stub.Generate(message)
        await asyncio.sleep(after_s)
        call.cancel()
        with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
            async for _ in call:
                pass

    async with neighbour(cluster, long_case), grpc.aio.insecure_channel(cluster.grpc_address) as channel:
        stub = glm_pb2_grpc.GlmStub(channel)
        waits = (0.0, 0.001, 0.01, 0.05, 0.2)
        await all_of([leave(stub, message, after_s) for message in messages for after_s in waits])


def without_stream(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "stream"}
