"""What only gRPC has: unknown fields, presence, health, statuses without a server around them."""

import asyncio
import math

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from glm_cluster.api.grpc import GlmGrpc
from glm_cluster.api.proto import glm_pb2
from glm_cluster.errors import InvalidRequest

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def user(text, **fields):
    turn = glm_pb2.ChatMessage(role=glm_pb2.ROLE_USER, content=text)
    return glm_pb2.ChatRequest(model="tiny", messages=[turn], **fields)


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return caught.value.details()


async def test_chat_and_chat_stream_give_the_same(stub):
    request = user("hey!", return_token_ids=True, max_tokens=50)
    whole = await stub.Chat(request)
    chunks = [chunk async for chunk in stub.ChatStream(request)]
    assert whole.choices[0].message == glm_pb2.ChatMessage(role=glm_pb2.ROLE_ASSISTANT, content="]a[!yeh]resu[")
    assert "".join(chunk.content for chunk in chunks) == whole.choices[0].message.content
    assert [id for chunk in chunks for id in chunk.token_ids] == list(whole.choices[0].token_ids)
    assert list(chunks[0].prompt_token_ids) == list(whole.prompt_token_ids) == list(b"[user]hey![a]")
    assert chunks[-1].usage == whole.usage
    assert (whole.choices[0].finish_reason, whole.model) == (glm_pb2.FINISH_REASON_STOP, "tiny")
    assert whole.id.startswith("chatcmpl-")
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


async def test_token_ids_come_only_when_asked_for(stub):
    chunks = [chunk async for chunk in stub.ChatStream(user("a!"))]
    assert not any(chunk.token_ids or chunk.prompt_token_ids for chunk in chunks)


async def test_zero_is_not_the_same_as_absent(stub, echo):
    await stub.Chat(user("a!"))
    await stub.Chat(user("a!", sampling=glm_pb2.Sampling(temperature=0, seed=0)))
    assert [request.sampling.temperature for request in echo.seen] == [1.0, 0.0]
    assert echo.seen[1].sampling.seed == 0


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
async def test_numbers_that_are_none_are_refused(stub, echo, number):
    details = await refused(stub.Chat(user("a", sampling=glm_pb2.Sampling(temperature=number))))
    assert "temperature: Input should be a finite number" in details
    assert echo.seen == []


def with_unknown(message, number=999):
    """The same message, from a client whose schema has one more field."""
    extended = type(message)()
    extended.MergeFromString(message.SerializeToString() + _varint(number << 3) + b"\x01")
    return extended


def _varint(value):
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])


async def test_fields_of_a_newer_schema_are_refused_wherever_they_are(stub, echo):
    assert "field 999" in await refused(stub.Chat(with_unknown(user("a"))))
    deep = user("a")
    deep.messages.append(with_unknown(deep.messages[0], 77))
    assert "messages.1.field 77" in await refused(stub.Chat(deep))
    sampled = user("a", sampling=with_unknown(glm_pb2.Sampling(top_k=1)))
    assert "sampling.field 999" in await refused(stub.Chat(sampled))
    ids = glm_pb2.GenerateRequest(model="tiny", token_ids=with_unknown(glm_pb2.TokenIds(ids=[1])))
    assert "token_ids.field 999" in await refused(stub.Generate(ids).read())
    assert echo.seen == []


async def test_missing_fields_and_unknown_roles_are_refused(stub):
    assert "model: Field required" in await refused(stub.Chat(glm_pb2.ChatRequest()))
    assert "prompt: Field required" in await refused(stub.Generate(glm_pb2.GenerateRequest(model="tiny")).read())
    turn = glm_pb2.ChatMessage(role=9, content="a")
    assert "messages.0.role" in await refused(stub.Chat(glm_pb2.ChatRequest(model="tiny", messages=[turn])))


@pytest.mark.parametrize("method", ["ChatStream", "Chat"])
async def test_a_client_that_leaves_is_cancelled_down_to_the_engine(stub, echo, method):
    echo.pause_s = 0.05
    call = getattr(stub, method)(user("abc"))
    async with asyncio.timeout(5):
        while echo.open == 0:
            await asyncio.sleep(0.005)
        call.cancel()
        while echo.open:
            await asyncio.sleep(0.005)
    assert echo.closed_early == 1


async def test_a_client_that_leaves_takes_all_its_inputs_with_it(stub, counter):
    counter.hold = asyncio.Event()
    call = stub.Embed(glm_pb2.EmbedRequest(model="mapper", input=[{"text": "a"}, {"text": "b"}]))
    sending = asyncio.ensure_future(call.code())
    async with asyncio.timeout(5):
        while counter.open < 2:
            await asyncio.sleep(0.005)
        call.cancel()
        while counter.open:
            await asyncio.sleep(0.005)
    assert (counter.cancelled, await sending) == (2, grpc.StatusCode.CANCELLED)


async def test_models_are_listed(stub):
    models = (await stub.ListModels(glm_pb2.ListModelsRequest())).models
    assert [(model.id, model.max_model_len, model.task, tuple(model.labels)) for model in models] == [
        ("tiny", 100, glm_pb2.TASK_GENERATE, ()),
        ("single", 50, glm_pb2.TASK_CLASSIFY, ("a", "b", "c")),
        ("multi", 50, glm_pb2.TASK_CLASSIFY, ("a", "b", "c")),
        ("value", 50, glm_pb2.TASK_CLASSIFY, ("a",)),
        ("values", 50, glm_pb2.TASK_CLASSIFY, ("a", "b", "c")),
        ("tagger", 50, glm_pb2.TASK_CLASSIFY_TOKENS, ("a", "b", "c")),
        ("multi-tagger", 50, glm_pb2.TASK_CLASSIFY_TOKENS, ("a", "b", "c")),
        ("mapper", 50, glm_pb2.TASK_EMBED, ()),
        ("framing", 100, glm_pb2.TASK_GENERATE, ()),
    ]


async def test_health_follows_readiness(channel, state):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "glm_cluster.v1.Glm"):
        request = health_pb2.HealthCheckRequest(service=service)
        state.is_ready = True
        assert (await health.Check(request)).status == SERVING
        state.is_ready = False
        assert (await health.Check(request)).status == NOT_SERVING
    listed = (await health.List(health_pb2.HealthListRequest())).statuses
    assert {name: status.status for name, status in listed.items()} == dict.fromkeys(
        ("", "glm_cluster.v1.Glm"), NOT_SERVING
    )


async def test_health_of_a_stranger(channel):
    health = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(service="other"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    watching = health.Watch(health_pb2.HealthCheckRequest(service="other"))
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watching.cancel()


async def test_watch_tells_each_change_once(channel, state, monkeypatch):
    monkeypatch.setattr("glm_cluster.api.health.WATCH_INTERVAL_S", 0.01)
    watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    told = []
    async with asyncio.timeout(5):
        for now in (True, False, True):
            state.is_ready = now
            told.append((await watching.read()).status)
    watching.cancel()
    assert told == [SERVING, NOT_SERVING, SERVING]


async def test_a_server_that_stops_says_so_and_ends_its_watches(service, server, tally, served):
    """An open watch was one of the calls that its end waited for."""
    glm = GlmGrpc(service, server, tally)
    async with served(glm) as channel, asyncio.timeout(30):
        health = health_pb2_grpc.HealthStub(channel)
        watching = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == SERVING
        glm.stop()
        assert (await watching.read()).status == NOT_SERVING
        assert await watching.read() is grpc.aio.EOF
        assert await watching.code() == grpc.StatusCode.OK
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
        late = health.Watch(health_pb2.HealthCheckRequest())
        assert [answer.status async for answer in late] == [NOT_SERVING]


class Context:
    """What a call leaves on its context."""

    def __init__(self):
        self.code, self.details = None, None

    def set_code(self, code):
        self.code = code

    def set_details(self, details):
        self.details = details

    def set_trailing_metadata(self, trailing_metadata):
        self.trailing_metadata = trailing_metadata

    def invocation_metadata(self):
        return ()


async def test_an_error_sets_the_status_and_is_raised(service, server, tally):
    """Serve sends what stands on the context once the method has raised."""
    context = Context()
    with pytest.raises(InvalidRequest) as caught:
        await GlmGrpc(service, server, tally).Chat(user("a", max_tokens=0), context)
    assert (context.code, context.details) == (grpc.StatusCode.INVALID_ARGUMENT, caught.value.message)
