"""What the server says of itself: the same over both wires, and nothing secret."""

from dataclasses import asdict, replace

import grpc
import httpx
import pytest
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.about import FACTS, server_of

from glm_cluster.api.http import build_http_app
from glm_cluster.api.proto import glm_pb2
from glm_cluster.api.service import Service
from glm_cluster.metrics import NoMeters
from glm_cluster.records import ReplicaLoad, SamplingDefaults


def broken(state):
    raise ZeroDivisionError("secret")


def load(running, waiting, free, blocks):
    return ReplicaLoad(num_running=running, num_waiting=waiting, num_free_blocks=free, num_blocks=blocks)


async def test_server_info_is_alike(http, stub, service):
    over_http = (await http.get("/v1/server_info")).json()
    assert over_http["versions"] == {"glm_cluster": "1.2.3", "python": "3.11", "torch": "2.11", "ray": "2.60"}
    assert [model["id"] for model in over_http["models"]] == [info.name for info in service.infos]
    assert over_http["models"][1] == {
        "id": "single",
        "task": "classify",
        "max_model_len": 50,
        "labels": ["a", "b", "c"],
        "engine": asdict(FACTS),
        "sampling_defaults": None,
    }
    assert over_http["models"][0]["sampling_defaults"] == asdict(SamplingDefaults())
    info = await stub.GetServerInfo(glm_pb2.GetServerInfoRequest())
    message = MessageToDict(info, preserving_proto_field_name=True)
    assert message["versions"] == over_http["versions"]
    for ours, theirs in zip(message["models"], over_http["models"], strict=True):
        assert ours.pop("task") == "TASK_" + theirs.pop("task").upper().replace("-", "_")
        engine, expected = ours.pop("engine"), theirs.pop("engine")
        assert {name: str(value) for name, value in engine.items()} == {k: str(v) for k, v in expected.items()}
        assert (ours.pop("labels", []), int(ours.pop("max_model_len"))) == (
            theirs.pop("labels"),
            theirs.pop("max_model_len"),
        )
        assert ours.pop("sampling_defaults", None) == _given(theirs.pop("sampling_defaults"))
        assert ours == theirs


def _given(values):
    return values and {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [
        ([], (0, 0, 0, 0.0)),
        ([load(2, 5, 30, 100)], (1, 2, 5, 0.7)),
        ([load(2, 5, 30, 100), load(1, 0, 300, 300)], (2, 3, 5, 0.175)),
        ([load(0, 0, 0, 0)], (1, 0, 0, 0.0)),
    ],
)
async def test_load_is_the_replicas_together_and_alike(http, stub, state, replicas, expected):
    state.loads = {"tiny": replicas, "mapper": [load(0, 0, 4, 4)]}
    tiny, mapper = (await http.get("/load")).json()["models"]
    assert tuple(tiny.values()) == ("tiny", *expected)
    assert mapper["kv_cache_usage"] == 0.0
    over_grpc = await stub.GetLoad(glm_pb2.GetLoadRequest())
    names = [field.name for field in glm_pb2.ModelLoad.DESCRIPTOR.fields]
    assert [{name: getattr(model, name) for name in names} for model in over_grpc.models] == [tiny, mapper]


@pytest.mark.parametrize("path", ["/load", "/ready", "/health"])
async def test_a_defect_is_told_as_one_over_http(path, http, state, tally, monkeypatch):
    """It was a plain text."""
    for name in ("is_alive", "is_ready", "loads"):
        monkeypatch.setattr(type(state), name, property(broken), raising=False)
    answer = await http.get(path)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    counted = [tags for name, _, tags in tally.counted if name == "glm_requests_total"]
    assert counted == [{"wire": "http", "route": path.strip("/"), "status": "internal_error"}]


async def test_a_defect_is_told_as_one_over_grpc(stub, channel, state, tally, monkeypatch):
    """It was UNKNOWN."""
    for name in ("is_ready", "loads"):
        monkeypatch.setattr(type(state), name, property(broken), raising=False)
    health = health_pb2_grpc.HealthStub(channel)
    calls = [
        stub.GetLoad(glm_pb2.GetLoadRequest()),
        health.Check(health_pb2.HealthCheckRequest()),
        health.List(health_pb2.HealthListRequest()),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert "secret" not in str(caught.value.details())
    watching = health.Watch(health_pb2.HealthCheckRequest())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watching.read()
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    counted = sorted(tags["route"] for name, _, tags in tally.counted if name == "glm_requests_total")
    assert counted == ["health", "health", "health_watch", "load"]


async def test_what_the_server_says_of_itself_is_counted_alike(http, stub, tally):
    for path in ("/v1/models", "/v1/models/tiny", "/v1/server_info", "/load", "/v1/models/none"):
        await http.get(path)
    await stub.ListModels(glm_pb2.ListModelsRequest())
    await stub.GetModel(glm_pb2.GetModelRequest(model="tiny"))
    await stub.GetServerInfo(glm_pb2.GetServerInfoRequest())
    await stub.GetLoad(glm_pb2.GetLoadRequest())
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.GetModel(glm_pb2.GetModelRequest(model="none"))
    counted = [tuple(tags.values()) for name, _, tags in tally.counted if name == "glm_requests_total"]
    told = [("models", "ok"), ("model", "ok"), ("server_info", "ok"), ("load", "ok"), ("model", "model_not_found")]
    assert counted == [(wire, *one) for wire in ("http", "grpc") for one in told]


async def test_the_version(http):
    assert (await http.get("/version")).json() == {"version": "1.2.3"}


async def test_a_name_with_slashes_is_found_spelt_either_way(service: Service):
    """Names may be those of repositories."""
    model = service.named("tiny")
    odd = replace(model, info=replace(model.info, name="zai-org/GLM 4%"))
    served = Service(models=[odd], meters=NoMeters())
    transport = httpx.ASGITransport(build_http_app(served, server_of(served.infos), NoMeters()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for spelt in ("zai-org/GLM%204%25", "zai-org%2FGLM%204%25"):
            assert (await client.get(f"/v1/models/{spelt}")).json()["id"] == "zai-org/GLM 4%"
