"""Four models behind one front, each with its task: what comes over either wire is what their engines make offline."""

import asyncio
import base64
import json
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
import torch
from support.checkpoints import write_tokenizer
from support.cluster import RANK, Case, RunningCluster, eventually, stream_ids
from support.engines import encode

from glm_cluster.api.proto import glm_pb2, glm_pb2_grpc
from glm_cluster.config import EngineConfig
from glm_cluster.engine.engine import Engine, open_engine
from glm_cluster.model.heads import GlmForSequenceClassification
from glm_cluster.records import Encoded, EncodeRequest, Pooling, Task

Ids = tuple[int, ...]
Offline = Callable[[str, list[Ids], Pooling], list[Encoded]]

TASKS: dict[str, Task] = {"topics": "classify", "tags": "classify-tokens", "vectors": "embed"}
TP = {"topics": 2}
KV_BYTES = 32 << 20
LABELS = {"0": "sports", "1": "politics", "2": "weather"}
SHAPE: dict[str, Any] = {"eos_token_id": [300], "max_position_embeddings": 1024, "id2label": LABELS}


@pytest.fixture(scope="module")
def heads(checkpoint: Callable[..., Path]) -> dict[str, Path]:
    """A tiny random checkpoint for each task."""
    return {name: write_tokenizer(checkpoint(task=task, **SHAPE)) for name, task in TASKS.items()}


@pytest.fixture(scope="module")
def cluster(
    start_cluster: Callable[..., RunningCluster], settings: Callable[..., dict[str, Any]], heads: dict[str, Path]
) -> RunningCluster:
    models = [
        settings(model=str(heads[name]), model_name=name, task=task, tp=TP.get(name, 1)) for name, task in TASKS.items()
    ]
    return start_cluster({"models": [settings(), *models]})


@pytest.fixture(scope="module")
def alone(heads: dict[str, Path]) -> Offline:
    """What an engine of one rank makes of prompts, one after the other."""
    engines: dict[str, Engine] = {}

    def run(name: str, prompts: list[Ids], pooling: Pooling) -> list[Encoded]:
        if name not in engines:
            config = EngineConfig(model=str(heads[name]), task=TASKS[name], device="cpu", kv_cache_bytes=KV_BYTES)
            engines[name] = open_engine(config)
        requests = [EncodeRequest(request_id="r", prompt=prompt, pooling=pooling) for prompt in prompts]
        return [encode(engines[name], [request])["r"] for request in requests]

    return run


def prompts(count: int, *, seed: int, lengths: tuple[int, ...] = (1, 5, 16, 64, 130)) -> list[Ids]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(2, 256) for _ in range(rng.choice(lengths))) for _ in range(count)]


def rows(encoded: Encoded) -> list[tuple[float, ...]]:
    return list(struct.iter_unpack(f"<{encoded.width}f", encoded.values))


async def post(cluster: RunningCluster, path: str, model: str, inputs: list[Ids], **more: Any) -> list[dict[str, Any]]:
    body = {"model": model, "input": [list(ids) for ids in inputs], **more}
    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=120) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return list(response.json()["data"])


def inputs_of(many: list[Ids]) -> list[glm_pb2.Input]:
    return [glm_pb2.Input(token_ids=glm_pb2.TokenIds(ids=ids)) for ids in many]


async def test_every_model_is_listed_with_its_task(cluster: RunningCluster):
    async with grpc.aio.insecure_channel(cluster.grpc_address) as channel:
        reply = await glm_pb2_grpc.GlmStub(channel).ListModels(glm_pb2.ListModelsRequest(), timeout=30)
    assert {model.id: list(model.labels) for model in reply.models} == {
        "tiny": [],
        "topics": list(LABELS.values()),
        "tags": list(LABELS.values()),
        "vectors": [],
    }


@pytest.mark.parametrize("pooling", ["last", "mean"])
async def test_embeddings_have_the_bits_of_the_engine(cluster: RunningCluster, alone: Offline, pooling: Pooling):
    many = prompts(12, seed=1)
    wanted = alone("vectors", many, pooling)
    asked = {"pooling": pooling, "normalize": False}
    floats = await post(cluster, "/v1/embeddings", "vectors", many, **asked)
    assert [tuple(item["embedding"]) for item in floats] == [rows(one)[0] for one in wanted]
    packed = await post(cluster, "/v1/embeddings", "vectors", many, encoding_format="base64", **asked)
    assert [base64.b64decode(item["embedding"]) for item in packed] == [one.values for one in wanted]
    request = glm_pb2.EmbedRequest(
        model="vectors", input=inputs_of(many), pooling=f"POOLING_{pooling.upper()}", normalize=False
    )
    async with grpc.aio.insecure_channel(cluster.grpc_address) as channel:
        reply = await glm_pb2_grpc.GlmStub(channel).Embed(request, timeout=60)
    assert [tuple(one.values) for one in reply.embeddings] == [rows(one)[0] for one in wanted]


async def test_labels_of_two_ranks_are_those_of_one(cluster: RunningCluster, alone: Offline):
    many = prompts(12, seed=2)
    wanted = [dict(zip(LABELS.values(), rows(one)[0], strict=True)) for one in alone("topics", many, "last")]
    verdicts = await post(cluster, "/v1/classify", "topics", many, raw_scores=True)
    assert [verdict["scores"] for verdict in verdicts] == [pytest.approx(one, rel=1e-4, abs=1e-4) for one in wanted]
    request = glm_pb2.ClassifyRequest(model="topics", input=inputs_of(many), raw_scores=True)
    async with grpc.aio.insecure_channel(cluster.grpc_address) as channel:
        reply = await glm_pb2_grpc.GlmStub(channel).Classify(request, timeout=60)
    typed = [{score.label: score.score for score in one.scores} for one in reply.classifications]
    assert typed == [verdict["scores"] for verdict in verdicts]


async def test_padding_at_the_end_is_not_judged(cluster: RunningCluster, heads: dict[str, Path]):
    """The served answer is the offline class's: it judges by the rightmost token that is not the padding id, 0."""
    many = [(5, 6, 7), (5, 6, 7, 0), (5, 0, 7, 0, 0), (0, 0)]
    verdicts = await post(cluster, "/v1/classify", "topics", many, raw_scores=True)
    offline = GlmForSequenceClassification.from_pretrained(heads["topics"])
    for ids, verdict in zip(many, verdicts, strict=True):
        with torch.inference_mode():
            (wanted,) = offline(torch.tensor([ids])).logits.tolist()
        assert list(verdict["scores"].values()) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


async def test_labels_of_tokens_are_the_engines(cluster: RunningCluster, alone: Offline):
    many = prompts(6, seed=3)
    wanted = [[max(row) for row in rows(one)] for one in alone("tags", many, "tokens")]
    items = await post(cluster, "/v1/classify_tokens", "tags", many, raw_scores=True)
    assert [[token["score"] for token in item["tokens"]] for item in items] == wanted
    assert [[token["token_id"] for token in item["tokens"]] for item in items] == [list(ids) for ids in many]
    request = glm_pb2.ClassifyTokensRequest(model="tags", input=inputs_of(many), raw_scores=True)
    async with grpc.aio.insecure_channel(cluster.grpc_address) as channel:
        reply = await glm_pb2_grpc.GlmStub(channel).ClassifyTokens(request, timeout=60)
    assert [[token.score for token in one.tokens] for one in reply.inputs] == wanted


async def test_a_model_beside_others_generates_as_alone(cluster: RunningCluster, cases: Callable[..., list[Case]]):
    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=60) as client:
        streams = [asyncio.create_task(stream_ids(client, case)) for case in cases(6, seed=1, max_tokens=(1, 60))]
        await post(cluster, "/v1/embeddings", "vectors", prompts(20, seed=4))
        for case, stream in zip(cases(6, seed=1, max_tokens=(1, 60)), streams, strict=True):
            assert tuple(await stream) == case.expected


def test_the_readme_s_line_is_answered(cluster: RunningCluster):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (line,) = (line for line in readme.splitlines() if line.startswith("curl ") and "/v1/classify" in line)
    command = line.replace("http://127.0.0.1:8000", cluster.http_url)
    run = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True, timeout=60)
    assert json.loads(run.stdout)["data"][0]["label"] in LABELS.values(), run.stderr


async def test_a_prompt_may_fill_the_model(cluster: RunningCluster, alone: Offline):
    (full,) = prompts(1, seed=5, lengths=(1024,))
    (item,) = await post(cluster, "/v1/embeddings", "vectors", [full], normalize=False)
    assert tuple(item["embedding"]) == rows(alone("vectors", [full], "last")[0])[0]


async def test_encode_requests_survive_a_killed_rank(cluster: RunningCluster, alone: Offline):
    """The blow falls while hundreds wait and run; every answer is that of the undisturbed run, and health tells."""
    many = prompts(400, seed=6, lengths=(600, 900))
    call = asyncio.create_task(post(cluster, "/v1/embeddings", "vectors", many, pooling="mean", normalize=False))
    rank = await busiest_rank(cluster)
    assert not call.done()
    rank.kill()
    await asyncio.to_thread(eventually, lambda: not cluster.healthy(), "health turns red", timeout_s=30)
    assert not call.done()
    some = range(0, 400, 40)
    wanted = alone("vectors", [many[i] for i in some], "mean")
    items = await call
    assert len(items) == 400
    assert [tuple(items[i]["embedding"]) for i in some] == [rows(one)[0] for one in wanted]
    await asyncio.to_thread(eventually, cluster.healthy, "health turns green")


async def busiest_rank(cluster: RunningCluster) -> psutil.Process:
    """The rank that computes: all others wait."""
    before = {rank: rank.cpu_times().user for rank in cluster.processes(RANK)}
    while True:
        await asyncio.sleep(0.05)
        spent = {rank: rank.cpu_times().user - before[rank] for rank in before}
        busiest = max(spent, key=lambda rank: spent[rank])
        if spent[busiest] > 0.2:
            return busiest
