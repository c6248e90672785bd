"""What a request leaves open is the model's; what it says wins, over both wires alike."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from support.about import server_of
from support.checkpoints import edit_json, oracle, oracle_greedy
from support.direct import Direct

from glm_cluster.api.grpc import GlmGrpc
from glm_cluster.api.http import build_http_app
from glm_cluster.api.openai import CompletionRequest
from glm_cluster.api.proto import glm_pb2, glm_pb2_grpc
from glm_cluster.api.service import Service
from glm_cluster.config import EngineConfig, ModelConfig
from glm_cluster.engine.engine import open_engine
from glm_cluster.errors import CheckpointError, InvalidRequest
from glm_cluster.metrics import NoMeters
from glm_cluster.model.generation.sampling_defaults import sampling_defaults
from glm_cluster.records import SamplingDefaults

OPENAI = {"temperature": 1.0, "top_p": None, "top_k": None, "min_p": None, "repetition_penalty": 1.0}
MODEL = {"temperature": 0.8, "top_p": 0.7, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "abc"}], "max_tokens": 1}
TEXT = {"model": "tiny", "prompt": "abc", "max_tokens": 1}


def with_defaults(service, **values):
    """A service of `tiny` alone, whose checkpoint says that."""
    tiny = service.named("tiny")
    info = replace(tiny.info, sampling_defaults=SamplingDefaults(**values))
    return Service(models=[replace(tiny, info=info)], meters=NoMeters())


@pytest.fixture
async def http(service, tally):
    told = with_defaults(service, **MODEL)
    app = build_http_app(told, server_of(told.infos), tally)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.fixture
async def stub(service, served, tally):
    told = with_defaults(service, **MODEL)
    async with served(GlmGrpc(told, server_of(told.infos), tally)) as channel:
        yield glm_pb2_grpc.GlmStub(channel)


def sampled(request):
    return {name: getattr(request.sampling, name) for name in MODEL}


async def everywhere(http, stub, echo, fields):
    """What reaches the engine by each of the four ways in; over gRPC, null is a field that is not set."""
    assert (await http.post("/v1/chat/completions", json=CHAT | fields)).status_code == 200
    assert (await http.post("/v1/completions", json=TEXT | fields)).status_code == 200
    sampling = {name: value for name, value in fields.items() if value is not None}
    turns = [{"role": "ROLE_USER", "content": "abc"}]
    await stub.Chat(glm_pb2.ChatRequest(model="tiny", messages=turns, max_tokens=1, sampling=sampling))
    request = glm_pb2.GenerateRequest(model="tiny", text="abc", max_tokens=1, sampling=sampling)
    assert [chunk async for chunk in stub.Generate(request)]
    return [sampled(seen) for seen in echo.seen]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        (dict.fromkeys(MODEL), {}),
        ({"temperature": 1.0}, {"temperature": 1.0}),
        ({"temperature": 0.0}, {"temperature": 0.0}),
        ({"repetition_penalty": 1.0}, {"repetition_penalty": 1.0}),
        ({"top_p": 1.0}, {"top_p": 1.0}),
        ({"min_p": 0.0}, {"min_p": 0.0}),
        ({"top_k": 3}, {"top_k": 3}),
        ({"top_k": 0}, {"top_k": None}),
        ({"top_k": -1}, {"top_k": None}),
        ({"temperature": 0.3, "top_p": None}, {"temperature": 0.3}),
    ],
)
async def test_what_is_said_wins_and_the_rest_is_the_models(http, stub, echo, fields, expected):
    assert await everywhere(http, stub, echo, fields) == [MODEL | expected] * 4


async def test_a_model_that_says_nothing_samples_as_openais(service, echo):
    told = with_defaults(service)
    prepared = await told.prepare_completion("r", CompletionRequest.parse(TEXT))
    assert sampled(prepared.generations[0]) == OPENAI


async def test_choices_of_a_greedy_model_are_alike(service):
    told = with_defaults(service, temperature=0.0)
    prepared = await told.prepare_completion("r", CompletionRequest.parse(TEXT | {"n": 3}))
    assert [sampled(one)["temperature"] for one in prepared.generations] == [0.0] * 3


async def test_server_info_tells_them_alike(http, stub):
    (model,) = (await http.get("/v1/server_info")).json()["models"]
    assert model["sampling_defaults"] == MODEL
    (message,) = (await stub.GetServerInfo(glm_pb2.GetServerInfoRequest())).models
    assert {name: getattr(message.sampling_defaults, name) for name in MODEL} == MODEL


async def test_the_document_promises_no_number_of_its_own(http):
    schemas = (await http.get("/openapi.json")).json()["components"]["schemas"]
    for body in ("ChatCompletionRequest", "CompletionRequest"):
        assert {name: schemas[body]["properties"][name]["default"] for name in MODEL} == dict.fromkeys(MODEL)


EDGES = {
    "temperature": (-1e-9, 0, 1e-5, 2, 2.001),
    "top_p": (-0.1, 0, 1, 1.001),
    "top_k": (-2, -1, 0, 1, 2**31 - 1, 2**31),
    "min_p": (-1e-9, 0, 1, 1.001),
    "repetition_penalty": (0.00999, 0.01, 10, 10.001),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, some in EDGES.items() for value in some])
def test_a_checkpoint_may_say_what_a_request_may(tmp_path: Path, name: str, value: float):
    (tmp_path / "generation_config.json").write_text(json.dumps({name: value}))
    refused = []
    for attempt, error in (
        (lambda: CompletionRequest.parse(TEXT | {name: value}), InvalidRequest),
        (lambda: sampling_defaults(ModelConfig.from_mapping({"model": str(tmp_path)})), CheckpointError),
    ):
        try:
            attempt()
            refused.append(False)
        except error:
            refused.append(True)
    assert refused[0] == refused[1]


async def test_a_checkpoint_of_top_k_1_answers_greedily(
    checkpoint: Callable[..., Path], tmp_path: Path, service: Service
):
    """On a real engine, from the file to the ids; OpenAI's sampling draws others from the same seed."""
    for file in checkpoint().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    greedy = oracle_greedy(oracle(tmp_path), tuple(b"abc"), 8)
    edit_json(tmp_path / "generation_config.json", top_k=1)
    engine = Direct(open_engine(EngineConfig(model=str(tmp_path), device="cpu")))
    ids = {}
    for source in ("model", "openai"):
        told = ModelConfig.from_mapping({"model": str(tmp_path), "sampling_defaults": source})
        tiny = service.named("tiny")
        info = replace(tiny.info, eos_token_ids=(1,), sampling_defaults=sampling_defaults(told))
        body = CompletionRequest.parse({"model": "tiny", "prompt": "abc", "max_tokens": 8, "seed": 5})
        one = Service(models=[replace(tiny, info=info)], meters=NoMeters())
        (request,) = (await one.prepare_completion(source, body)).generations
        ids[source] = tuple([token async for event in engine.generate(request) for token in event.tokens])
    assert ids["model"] == greedy
    assert ids["openai"] != greedy
