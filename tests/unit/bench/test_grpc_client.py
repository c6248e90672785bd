"""Generate of the real service, on a real socket, with a generator that counts up."""

import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest

from glm_cluster.api.grpc import GlmGrpc
from glm_cluster.api.proto import glm_pb2_grpc
from glm_cluster.api.server import Server, Versions
from glm_cluster.api.service import ServedModel, Service
from glm_cluster.api.window import EncodeWindow
from glm_cluster.bench.grpc_client import open_grpc_client
from glm_cluster.bench.order import Order
from glm_cluster.errors import EngineUnavailable, GlmError
from glm_cluster.metrics import NoMeters
from glm_cluster.records import ModelInfo, TokenEvent


class Letters:
    """An engine that says a, b, c, ..., and keeps what it was asked."""

    def __init__(self) -> None:
        self.seen = []

    async def generate(self, request):
        self.seen.append(request)
        last = request.sampling.max_tokens - 1
        for index in range(last + 1):
            finish = "length" if index == last else None
            yield TokenEvent(request.request_id, request.attempt, index, (97 + index,), finish)


class Quiet(GlmGrpc):
    """The service without Serve around it, which would log what is raised after the status was set."""

    async def Generate(self, request, context):
        with contextlib.suppress(GlmError):
            async for chunk in super().Generate(request, context):
                yield chunk


@pytest.fixture
def letters() -> Letters:
    return Letters()


@pytest.fixture
async def url(tokenizer, letters) -> AsyncIterator[str]:
    info = ModelInfo(name="tiny", vocab_size=301, max_model_len=64, eos_token_ids=(300,))
    window = EncodeWindow(tokenizer, NoMeters())
    model = ServedModel(info=info, tokenizer=tokenizer, template=None, window=window, generator=letters)

    async def yes():
        return True

    async def no_loads():
        return {}

    versions = Versions(glm_cluster="0", python="3", torch="2", ray="2")
    facts = Server(versions=versions, engines={}, alive=yes, ready=yes, replica_loads=no_loads)
    server = grpc.aio.server()
    methods = Quiet(Service(models=[model], meters=NoMeters()), facts, NoMeters())
    glm_pb2_grpc.add_GlmServicer_to_server(methods, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"grpc://127.0.0.1:{port}"
    await server.stop(None)
    window.close()


async def ask(url, prompt, **order):
    async with open_grpc_client(url, Order(max_tokens=5, **order)) as client:
        assert client.model == "tiny"
        return await client.ask(prompt, 0.0)


async def test_tokens_are_counted_as_they_come(url, letters) -> None:
    timing = await ask(url, (72, 73, 74))
    assert (timing.error, timing.num_tokens, timing.num_prompt_tokens) == (None, 5, 3)
    assert len(timing.arrivals_s) == 5
    assert list(timing.arrivals_s) == sorted(timing.arrivals_s)
    (request,) = letters.seen
    assert request.prompt == (72, 73, 74)
    assert (request.sampling.max_tokens, request.sampling.temperature) == (5, 0.0)


async def test_text_and_ids(url, letters) -> None:
    timing = await ask(url, "hi", return_token_ids=True)
    assert (timing.num_tokens, len(timing.arrivals_s)) == (5, 5)
    assert letters.seen[0].prompt == tuple(b"hi")


async def test_a_refusal_is_a_failed_request(url) -> None:
    timing = await ask(url, (9999,))
    assert timing.error is not None
    assert timing.error.startswith("INVALID_ARGUMENT: ")


async def test_the_models_end_tokens_are_ignored_when_ordered(url, letters) -> None:
    await ask(url, (1,), ignore_eos=True)
    await ask(url, (1,))
    assert [request.sampling.stop_token_ids for request in letters.seen] == [(), (300,)]


async def test_nobody_there() -> None:
    with pytest.raises(EngineUnavailable, match="start the server"):
        await ask("grpc://127.0.0.1:1", (1,))
