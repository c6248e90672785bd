"""Nobody gets by the gate: not by another spelling of a path, not by another method, not over the other wire."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from glm_cluster.api.access import Access
from glm_cluster.api.callers import Caller, Callers
from glm_cluster.api.gate import MAX_HEADER_BYTES, MAX_HEADERS
from glm_cluster.api.grpc import GlmGrpc
from glm_cluster.api.http import build_http_app
from glm_cluster.api.proto import glm_pb2, glm_pb2_grpc
from glm_cluster.config import Limits

KEY = {"authorization": "Bearer secret"}
METHODS = [method.name for method in glm_pb2.DESCRIPTOR.services_by_name["Glm"].methods]


@pytest.fixture
def access(tmp_path: Path, tally) -> Access:
    path = tmp_path / "keys"
    digest = hashlib.sha256(b"secret").hexdigest()
    path.write_text(f"- {{name: ada, sha256: {digest}, models: [tiny, mapper], requests_per_minute: 5}}\n")
    return Access(meters=tally, callers=Callers(path), limits=Limits(max_body_bytes=1000))


@pytest.fixture
async def app(service, server, tally, access: Access):
    return build_http_app(service, server, tally, access)


@pytest.fixture
async def http(app) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


async def ask(app, path: str, *, method: str = "GET", raw_path: bytes | None = None, headers=(), kind: str = "http"):
    """What the application sends for exactly this scope."""
    scope = {
        "type": kind,
        "method": method,
        "path": path,
        "raw_path": path.encode() if raw_path is None else raw_path,
        "root_path": "",
        "query_string": b"",
        "headers": list(headers),
    }
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("path", ["/health", "/ready", "/version"])
async def test_anyone_may_ask_how_it_is(path: str, http: httpx.AsyncClient):
    assert (await http.get(path)).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "X"])
@pytest.mark.parametrize(
    ("path", "raw_path"),
    [
        ("/v1/models", None),
        ("/v1/chat/completions", None),
        ("/nowhere", None),
        ("/", None),
        ("", None),
        ("//health", None),
        ("/health/", None),
        ("/health/../v1/models", None),
        ("/./health", None),
        ("/Health", None),
        ("/health", b"/%68ealth"),
        ("/health", b"/v1/models"),
        ("/v1/models", b"/health"),
        ("/v1/models", b"/v1/%6dodels"),
        ("/health;x", None),
        ("/health\0", None),
        ("http://test/health", None),
    ],
)
async def test_everything_else_takes_a_key(method: str, path: str, raw_path: bytes | None, app):
    start, body = await ask(app, path, method=method, raw_path=raw_path)
    assert start["status"] == 401
    assert (b"www-authenticate", b"Bearer") in start["headers"]
    assert (body["body"] == b"") == (method == "HEAD")


async def test_the_refusal_has_openai_s_shape(http: httpx.AsyncClient):
    response = await http.post("/v1/completions", json={"model": "tiny", "prompt": "a"})
    error = response.json()["error"]
    assert (error["code"], error["type"], error["param"]) == ("invalid_api_key", "authentication_error", None)
    assert response.headers["x-request-id"]


async def test_a_key_opens_the_routes(http: httpx.AsyncClient):
    assert (await http.get("/v1/models", headers=KEY)).status_code == 200
    body = {"model": "tiny", "prompt": "ab", "max_tokens": 2}
    assert (await http.post("/v1/completions", json=body, headers=KEY)).json()["choices"][0]["text"] == "ba"
    assert (await http.get("/nowhere", headers=KEY)).status_code == 404


async def test_websockets_are_closed(app):
    (closed,) = await ask(app, "/health", kind="websocket")
    assert closed["type"] == "websocket.close"


@pytest.mark.parametrize(
    "headers",
    [[(b"x", b"y")] * (MAX_HEADERS + 1), [(b"x", b"y" * MAX_HEADER_BYTES)]],
)
async def test_too_many_headers_are_refused_before_anything_else(headers, app):
    start, _ = await ask(app, "/health", headers=headers)
    assert start["status"] == 431


@pytest.mark.parametrize("given", ["a b", "x" * 129, "é"])
async def test_a_harmful_id_is_not_shown_again(given: str, http: httpx.AsyncClient):
    response = await http.get("/health", headers={"x-client-request-id": given.encode()})
    assert "x-client-request-id" not in response.headers
    assert response.headers["x-request-id"] != given


@pytest.fixture
def tokenised(service, monkeypatch) -> list[object]:
    """What was tokenised."""
    seen: list[object] = []
    encode_batch = service.named("tiny").tokenizer.encode_batch

    def watched(texts):
        seen.extend(texts)
        return encode_batch(texts)

    monkeypatch.setattr(service.named("tiny").tokenizer, "encode_batch", watched)
    return seen


MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/chat/completions", {"messages": MESSAGES, "stream": True}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/classify", {"input": "a"}),
        ("/v1/classify_tokens", {"input": "a"}),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [97]}),
    ],
)
@pytest.mark.parametrize("model", ["framing", "single", "tagger", "nowhere"])
async def test_another_model_is_forbidden_before_any_work(path: str, body, model: str, http, tokenised):
    """Prompts were rendered and tokenised, and grammars compiled, of those who may not ask."""
    response = await http.post(path, json={"model": model, **body}, headers=KEY)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "permission_denied")
    assert response.json()["error"]["param"] == "model"
    assert tokenised == []


async def test_a_used_up_budget_says_when_to_try_again(http: httpx.AsyncClient):
    body = {"model": "tiny", "prompt": "ab", "max_tokens": 1}
    statuses = [(await http.post("/v1/completions", json=body, headers=KEY)).status_code for _ in range(5)]
    assert statuses == [200] * 5
    response = await http.post("/v1/completions", json=body, headers=KEY)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(response.headers["retry-after"]) <= 12


async def test_a_long_body_is_refused(http: httpx.AsyncClient):
    response = await http.post("/v1/completions", content=b" " * 1001, headers=KEY)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


async def test_a_key_s_prompts_are_kept_apart(http: httpx.AsyncClient, echo, counter, access: Access):
    """By what the server makes of the key, whatever salt the client gives."""
    body = {"model": "tiny", "prompt": ["ab", "c"], "max_tokens": 1}
    for more in {}, {"cache_salt": "s"}:
        assert (await http.post("/v1/completions", json=body | more, headers=KEY)).status_code == 200
    assert (await http.post("/v1/embeddings", json={"model": "mapper", "input": "a"}, headers=KEY)).status_code == 200
    caller = access.callers.identify([KEY["authorization"].encode()], Caller.unknown())
    salts = [one.cache_salt for one in (*echo.seen, *counter.seen)]
    assert salts == [caller.cache_salt(given) for given in (None, None, "s", "s", None)]
    assert len({*salts}) == 2


async def test_a_key_s_requests_go_before_those_of_others_only_if_it_may(http: httpx.AsyncClient, echo):
    body = {"model": "tiny", "prompt": "ab", "max_tokens": 1}
    response = await http.post("/v1/completions", json=body | {"priority": -1}, headers=KEY)
    assert (response.status_code, response.json()["error"]["param"]) == (403, "priority")
    assert echo.seen == []
    assert (await http.post("/v1/completions", json=body | {"priority": 0}, headers=KEY)).status_code == 200


class Context:
    """A gRPC call with some metadata."""

    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self.metadata = metadata
        self.code: grpc.StatusCode | None = None

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_trailing_metadata(self, trailing_metadata: object) -> None:
        pass

    def set_details(self, details: str) -> None:
        self.details = details

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self.metadata


@pytest.fixture
async def stub(service, server, tally, access: Access, served) -> AsyncIterator[glm_pb2_grpc.GlmStub]:
    async with served(GlmGrpc(service, server, tally, access)) as channel:
        yield channel


async def status(call) -> grpc.StatusCode:
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer wrong"),), (("authorization", "secret"),)])
async def test_every_method_takes_a_key(name: str, metadata, service, server, tally, access: Access):
    context = Context(*metadata)
    method = getattr(GlmGrpc(service, server, tally, access), name)
    request_type = glm_pb2.DESCRIPTOR.services_by_name["Glm"].methods_by_name[name].input_type
    request = getattr(glm_pb2, request_type.name)()
    call = method(request, context)
    with pytest.raises(Exception, match="API key"):
        _ = [message async for message in call] if hasattr(call, "__aiter__") else await call
    assert context.code == grpc.StatusCode.UNAUTHENTICATED


async def test_a_key_opens_the_methods(stub):
    glm = glm_pb2_grpc.GlmStub(stub)
    request = glm_pb2.GenerateRequest(model="tiny", text="ab", max_tokens=2)
    chunks = [chunk.text async for chunk in glm.Generate(request, metadata=tuple(KEY.items()))]
    assert "".join(chunks) == "ba"
    assert await status(glm.Generate(request)) == grpc.StatusCode.UNAUTHENTICATED


async def test_limits_have_their_status(stub):
    glm, metadata = glm_pb2_grpc.GlmStub(stub), tuple(KEY.items())
    long = glm_pb2.GenerateRequest(model="tiny", text="a" * 1001, max_tokens=2)
    assert await status(glm.Generate(long, metadata=metadata)) == grpc.StatusCode.RESOURCE_EXHAUSTED
    other = glm_pb2.ClassifyRequest(model="single", input=[glm_pb2.Input(text="a")])
    assert await status(glm.Classify(other, metadata=metadata)) == grpc.StatusCode.PERMISSION_DENIED
    request = glm_pb2.GenerateRequest(model="tiny", text="ab", max_tokens=1)
    found = [await status(glm.Generate(request, metadata=metadata)) for _ in range(5)]
    assert found == [grpc.StatusCode.OK] * 4 + [grpc.StatusCode.RESOURCE_EXHAUSTED]
    call = glm.Generate(request, metadata=metadata)
    assert await status(call) == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 1 <= int(dict(await call.trailing_metadata())["retry-after"]) <= 12


USER = glm_pb2.ChatMessage(role=glm_pb2.ROLE_USER, content="hello")


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("Chat", glm_pb2.ChatRequest(model="framing", messages=[USER])),
        ("ChatStream", glm_pb2.ChatRequest(model="framing", messages=[USER])),
        ("Generate", glm_pb2.GenerateRequest(model="framing", text="a")),
        ("Embed", glm_pb2.EmbedRequest(model="framing", input=[glm_pb2.Input(text="a")])),
        ("Classify", glm_pb2.ClassifyRequest(model="single", input=[glm_pb2.Input(text="a")])),
        ("ClassifyTokens", glm_pb2.ClassifyTokensRequest(model="tagger", input=[glm_pb2.Input(text="a")])),
        ("Tokenize", glm_pb2.TokenizeRequest(model="framing", prompt="a")),
        ("Detokenize", glm_pb2.DetokenizeRequest(model="framing", tokens=[97])),
    ],
)
async def test_another_model_is_forbidden_over_grpc_too(name: str, request_, stub, tokenised):
    call = getattr(glm_pb2_grpc.GlmStub(stub), name)(request_, metadata=tuple(KEY.items()))
    assert await status(call) == grpc.StatusCode.PERMISSION_DENIED
    assert tokenised == []


async def test_health_takes_none(stub):
    response = await health_pb2_grpc.HealthStub(stub).Check(health_pb2.HealthCheckRequest())
    assert response.status == health_pb2.HealthCheckResponse.SERVING
