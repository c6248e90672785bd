"""Pages of allowed origins read every answer, refusals too; those of others none. Keys are asked of all."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest

from glm_cluster.api.access import Access
from glm_cluster.api.callers import Callers
from glm_cluster.api.gate import MAX_HEADERS
from glm_cluster.api.http import build_http_app
from glm_cluster.records import GenerationRequest, TokenEvent

PAGE = "https://chat.example.com"
VAULT = "app://obsidian.md"
KEY = {"authorization": "Bearer secret"}
ASKED = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}
TEXT = {"model": "tiny", "prompt": "ab", "max_tokens": 2}
ALLOW = "access-control-allow-origin"


@pytest.fixture
def client(service, server, tally, tmp_path: Path):
    """A client of the application with keys, for pages of these origins."""
    path = tmp_path / "keys"
    digest = hashlib.sha256(b"secret").hexdigest()
    path.write_text(f"- {{name: ada, sha256: {digest}, requests_per_minute: 2}}\n")
    access = Access(meters=tally, callers=Callers(path))

    def make(*origins: str) -> httpx.AsyncClient:
        app = build_http_app(service, server, tally, access, allowed_origins=origins)
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    return make


@pytest.mark.parametrize(("origins", "told"), [((PAGE, VAULT), PAGE), (("*",), "*")])
async def test_a_browser_s_question_beforehand_takes_no_key(client, tally, origins, told):
    async with client(*origins) as http:
        response = await http.options("/v1/chat/completions", headers={"origin": PAGE, **ASKED})
    assert response.status_code == 200
    assert response.headers[ALLOW] == told
    assert {"GET", "POST"} == {*response.headers["access-control-allow-methods"].split(", ")}
    assert {"authorization", "x-stainless-os"} <= {*response.headers["access-control-allow-headers"].split(",")}
    assert "access-control-allow-credentials" not in response.headers
    assert tally.counted == []


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example.com", **ASKED},
        {"origin": "https://chat.example.com.evil.com", **ASKED},
        {"origin": "http://chat.example.com", **ASKED},
        {"origin": "null", **ASKED},
        {"origin": PAGE, **ASKED, "access-control-request-method": "DELETE"},
    ],
)
async def test_what_is_not_allowed_is_refused_beforehand(client, headers):
    async with client(PAGE) as http:
        response = await http.options("/v1/chat/completions", headers=headers)
    assert response.status_code == 400
    assert response.headers.get(ALLOW) == (PAGE if headers["origin"] == PAGE else None)


@pytest.mark.parametrize(("origins", "told"), [((VAULT, PAGE), PAGE), (("*",), "*")])
async def test_answers_and_refusals_may_be_read(client, origins, told):
    """A script that may not read a refusal learns nothing but that the network failed."""
    async with client(*origins) as http:
        asking = {"headers": {**KEY, "origin": PAGE}}
        responses = [
            await http.post("/v1/completions", json=TEXT, **asking),
            await http.get("/health", headers={"origin": PAGE}),
            await http.post("/v1/completions", json=TEXT, headers={"origin": PAGE}),
            await http.post("/v1/completions", json=TEXT | {"temperature": 3}, **asking),
            await http.get("/nowhere", **asking),
            await http.post("/v1/completions", json=TEXT, **asking),
            await http.get("/health", headers=[("origin", PAGE), *[("x", "y")] * MAX_HEADERS]),
        ]
    assert [response.status_code for response in responses] == [200, 200, 401, 400, 404, 429, 431]
    for response in responses:
        assert response.headers[ALLOW] == told
        assert response.headers["access-control-expose-headers"] == "x-request-id, retry-after"
        assert response.headers["x-request-id"]
    assert responses[5].headers["retry-after"]


@pytest.mark.parametrize("origins", [(), (VAULT,)])
async def test_pages_of_others_read_nothing(client, origins):
    async with client(*origins) as http:
        responses = [
            await http.post("/v1/completions", json=TEXT, headers={**KEY, "origin": PAGE}),
            await http.post("/v1/completions", json=TEXT, headers={"origin": PAGE}),
            await http.options("/v1/completions", headers={"origin": PAGE, **ASKED}),
        ]
    assert [response.status_code for response in responses] == [200, 401, 400 if origins else 401]
    assert not any(ALLOW in response.headers for response in responses)


async def test_by_default_nothing_is_said_of_origins(http):
    response = await http.get("/version", headers={"origin": PAGE})
    assert not any(name == "vary" or name.startswith("access-control") for name in response.headers)


@pytest.mark.parametrize(
    "headers", [{}, {"origin": PAGE}, {"access-control-request-method": "POST"}, {"origin": PAGE, "x": "y"}]
)
@pytest.mark.parametrize("method", ["OPTIONS", "GET", "HEAD", "POST", "PUT"])
async def test_nothing_but_that_question_goes_without_a_key(client, method: str, headers):
    async with client("*") as http:
        assert (await http.request(method, "/v1/models", headers=headers)).status_code == 401


async def test_a_question_beforehand_opens_nothing(client, echo):
    """What has its form and a body is no more than it."""
    async with client("*") as http:
        asking = {"headers": {"origin": PAGE, **ASKED}, "json": TEXT}
        response = await http.request("OPTIONS", "/v1/completions", **asking)
        posted = await http.post("/v1/completions", **asking)
    assert (response.text, posted.status_code) == ("OK", 401)
    assert echo.seen == []


async def test_each_token_of_a_stream_passes_at_once(service, server, tally, echo, monkeypatch):
    """The engine makes its next token only once the client has the last."""
    got, generate = asyncio.Semaphore(0), echo.generate

    async def in_step(request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        async for event in generate(request):
            yield event
            async with asyncio.timeout(10):
                await got.acquire()

    monkeypatch.setattr(echo, "generate", in_step)
    body = [{"type": "http.request", "body": b'{"model":"tiny","prompt":"abc","max_tokens":5,"stream":true}'}]
    sent: list[dict[str, object]] = []

    async def receive():
        return body.pop() if body else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)
        if b'"text"' in message.get("body", b""):
            got.release()

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [(b"origin", PAGE.encode())],
    }
    await build_http_app(service, server, tally, allowed_origins=[PAGE])(scope, receive, send)
    assert (ALLOW.encode(), PAGE.encode()) in sent[0]["headers"]
    assert len([message for message in sent[1:] if message["body"]]) == 5
    assert echo.open == 0
