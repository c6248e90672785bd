"""What the server says of itself: the same over both wires, and nothing secret."""

from dataclasses import asdict, replace

import httpx
import pytest
from google.protobuf.json_format import MessageToDict
from support.about import FACTS, server_of

from glm_cluster.api.http import build_http_app
from glm_cluster.api.proto import glm_pb2
from glm_cluster.api.service import Service
from glm_cluster.metrics import NoMeters
from glm_cluster.records import ReplicaLoad


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
    }
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
        assert ours == theirs


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
