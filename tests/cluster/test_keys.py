"""API keys, limits and the usage log as the real entrances have them: HAProxy, Serve and two wires."""

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.cluster import INGRESS, RunningCluster, eventually

from glm_cluster.api.proto import glm_pb2, glm_pb2_grpc
from glm_cluster.keys import append_key, new_key

LIMITS = {"max_body_bytes": 20_000, "max_output_tokens": 400}


class Guarded:
    """A cluster that takes one key, and the file that says so."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "keys"
        self.log = directory / "usage.jsonl"
        self.secret = self.add("ada")

    def add(self, name: str) -> str:
        secret, entry = new_key(name)
        append_key(self.file, entry)
        return secret

    @property
    def bearer(self) -> str:
        return f"Bearer {self.secret}"

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    return Guarded(tmp_path_factory.mktemp("guarded"))


@pytest.fixture(scope="module")
def cluster(
    guarded: Guarded,
    start_cluster: Callable[..., RunningCluster],
    settings: Callable[..., dict[str, Any]],
) -> RunningCluster:
    return start_cluster(settings(api_keys_file=str(guarded.file), usage_log=str(guarded.log), limits=LIMITS))


@pytest.fixture
def http(cluster: RunningCluster, guarded: Guarded):
    with httpx.Client(base_url=cluster.http_url, timeout=60, headers={"authorization": guarded.bearer}) as client:
        yield client


@pytest.fixture
def glm(cluster: RunningCluster):
    with grpc.insecure_channel(cluster.grpc_address) as channel:
        yield glm_pb2_grpc.GlmStub(channel)


def raw_status(cluster: RunningCluster, head: str) -> int:
    """The status that this request, to the byte, gets."""
    host, _, port = cluster.http_url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode() + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = connection.makefile("rb").readline()
    return int(answer.split()[1])


@pytest.mark.parametrize(
    "line",
    [
        "GET /v1/models HTTP/1.1",
        "HEAD /v1/models HTTP/1.1",
        "OPTIONS /v1/models HTTP/1.1",
        "OPTIONS /v1/chat/completions HTTP/1.1",
        "POST /v1/completions HTTP/1.1",
        "GET //v1/models HTTP/1.1",
        "GET /v1//models HTTP/1.1",
        "GET /health/../v1/models HTTP/1.1",
        "GET /health/..%2fv1/models HTTP/1.1",
        "GET /%76%31/models HTTP/1.1",
        "GET /%68ealth HTTP/1.1",
        "GET /v1/models?/health HTTP/1.1",
        "GET http://x/v1/models HTTP/1.1",
        "GET /nowhere HTTP/1.1",
        "GET /docs HTTP/1.1",
        "GET /openapi.json HTTP/1.1",
    ],
)
def test_no_spelling_gets_round_the_gate(line: str, cluster: RunningCluster):
    assert raw_status(cluster, line) in (400, 401)


def test_health_takes_no_key(cluster: RunningCluster):
    assert cluster.healthy()
    with grpc.insecure_channel(cluster.grpc_address) as channel:
        response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_http_with_the_key_is_answered_and_recorded(http: httpx.Client, guarded: Guarded):
    body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 9, "temperature": 0, "stop_token_ids": []}
    response = http.post("/v1/completions", json=body, headers={"x-request-id": "mine"})
    assert response.status_code == 200
    usage = response.json()["usage"]
    ours = response.json()["id"].removeprefix("cmpl-")
    assert response.headers.get_list("x-request-id") == [ours]
    assert response.headers["x-client-request-id"] == "mine"
    eventually(lambda: any(one["request_id"] == ours for one in guarded.records()), "the record")
    (found,) = [one for one in guarded.records() if one["request_id"] == ours]
    assert (found["key"], found["client_request_id"], found["status"]) == ("ada", "mine", "ok")
    assert (found["prompt_tokens"], found["completion_tokens"]) == (3, usage["completion_tokens"])


def test_grpc_takes_the_same_key(glm: glm_pb2_grpc.GlmStub, guarded: Guarded):
    request = glm_pb2.GenerateRequest(model="tiny", token_ids=glm_pb2.TokenIds(ids=[5, 6]), max_tokens=4)
    metadata = (("authorization", guarded.bearer),)
    assert glm.ListModels(glm_pb2.ListModelsRequest(), metadata=metadata, timeout=30).models
    assert list(glm.Generate(request, metadata=metadata, timeout=60))
    for wrong in ((), (("authorization", "Bearer no"),), (("authorization", guarded.secret),)):
        with pytest.raises(grpc.RpcError) as caught:
            list(glm.Generate(request, metadata=wrong, timeout=30))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as caught:
            glm.ListModels(glm_pb2.ListModelsRequest(), metadata=wrong, timeout=30)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    eventually(lambda: any(one["wire"] == "grpc" for one in guarded.records()), "the record")


def test_limits_hold_on_both_wires(http: httpx.Client, glm: glm_pb2_grpc.GlmStub, guarded: Guarded):
    long = "a" * 20_001
    assert http.post("/v1/completions", json={"model": "tiny", "prompt": long}).status_code == 413
    response = http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 401})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "max_tokens")
    metadata = (("authorization", guarded.bearer),)
    for request, code in (
        (glm_pb2.GenerateRequest(model="tiny", text=long), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (glm_pb2.GenerateRequest(model="tiny", text="a", max_tokens=401), grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            list(glm.Generate(request, metadata=metadata, timeout=30))
        assert caught.value.code() == code
        status = Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
        assert (status.code, status.message) == (code.value[0], caught.value.details())


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_a_client_that_goes_away_is_recorded_once(
    wire: str, http: httpx.Client, glm: glm_pb2_grpc.GlmStub, guarded: Guarded
):
    before = len(guarded.records())
    if wire == "http":
        body = {"model": "tiny", "prompt": [9, 9], "max_tokens": 400, "stream": True, "ignore_eos": True}
        body |= {"prompt_lookup_num_tokens": 0}
        with http.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_lines())
    else:
        request = glm_pb2.GenerateRequest(
            model="tiny",
            token_ids=glm_pb2.TokenIds(ids=[9, 9]),
            max_tokens=400,
            sampling=glm_pb2.Sampling(ignore_eos=True),
            prompt_lookup_num_tokens=0,
        )
        call = glm.Generate(request, metadata=(("authorization", guarded.bearer),), timeout=60)
        next(call)
        call.cancel()
    eventually(lambda: len(guarded.records()) > before, "the record")
    time.sleep(0.5)  # a second one would come about now
    (found,) = guarded.records()[before:]
    assert (found["status"], found["finish"], found["wire"]) == ("cancelled", None, wire)
    assert found["completion_tokens"] <= found["generated_tokens"] < 400


def test_a_killed_front_leaves_one_record(cluster: RunningCluster, http: httpx.Client, guarded: Guarded):
    """The next front writes it. What the client got was noted before, but for the chunk that was last on its way."""
    (front,) = cluster.processes(INGRESS)
    body = {"model": "tiny", "prompt": [9, 9], "max_tokens": 400, "stream": True, "ignore_eos": True}
    body |= {"prompt_lookup_num_tokens": 0, "return_token_ids": True}
    chunks: list[dict[str, Any]] = []
    with suppress(httpx.HTTPError), http.stream("POST", "/v1/completions", json=body) as r:
        for line in r.iter_lines():
            if line.startswith("data: {"):
                chunks.append(json.loads(line.removeprefix("data: ")))
                if len(chunks) == 5:
                    front.kill()
    got = [len(choice["token_ids"]) for chunk in chunks for choice in chunk.get("choices", ())]
    ours = chunks[0]["id"].removeprefix("cmpl-")

    def of_ours() -> list[dict[str, Any]]:
        return [one for one in guarded.records() if one["request_id"] == ours]

    eventually(lambda: of_ours() != [], "the record")
    eventually(cluster.healthy, "another front")
    time.sleep(0.5)  # a second one would come about now
    (found,) = of_ours()
    assert (found["status"], found["finish"], found["key"], found["prompt_tokens"]) == ("front_died", None, "ada", 2)
    assert 1 <= sum(got[:-1]) <= found["completion_tokens"] <= found["generated_tokens"] < 400
    assert sum(got) <= found["generated_tokens"]
    assert len([one for one in cluster.processes(INGRESS) if one != front]) == 1


def test_a_new_key_works_without_a_restart(cluster: RunningCluster, guarded: Guarded):
    secret = guarded.add("bob")

    def let_in() -> bool:
        headers = {"authorization": f"Bearer {secret}"}
        return httpx.get(f"{cluster.http_url}/v1/models", headers=headers, timeout=30).status_code == 200

    eventually(let_in, "the new key", timeout_s=20)
