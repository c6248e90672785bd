"""The document says what the server does: every route is in it, and every answer is as it says."""

import copy
import json
import re

import jsonschema
import pytest
from starlette.routing import Route

from glm_cluster.api.http import build_http_app
from glm_cluster.api.openapi import document, error_statuses
from glm_cluster.api.server_replies import StatusBody
from glm_cluster.errors import DeadlineExceeded, EngineUnavailable, Overloaded

UNDESCRIBED = {"/openapi.json", "/docs"}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "abc"}], "max_tokens": 4}
TEXT = {"model": "tiny", "prompt": "abc!", "max_tokens": 4}
IDS = {"return_token_ids": True}
POSTS = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | IDS),
    ("/v1/completions", TEXT),
    ("/v1/completions", TEXT | IDS),
    ("/v1/chat/completions", CHAT | {"n": 2, "logprobs": True, "top_logprobs": 2, "prompt_logprobs": 1}),
    ("/v1/completions", TEXT | {"prompt": ["ab", "c"], "n": 2, "logprobs": 2, "echo": True, "stop": ["b"]}),
    ("/v1/completions", TEXT | IDS | {"prompt": [[97, 98], [99]], "prompt_logprobs": 1}),
    ("/v1/embeddings", {"model": "mapper", "input": ["a", "b"]}),
    ("/v1/embeddings", {"model": "mapper", "input": "a", "encoding_format": "base64"}),
    *[("/v1/classify", {"model": name, "input": "abc"}) for name in ("single", "multi", "value", "values")],
    ("/v1/classify_tokens", {"model": "tagger", "input": "abc"}),
    ("/v1/classify_tokens", {"model": "multi-tagger", "input": [[97]], "include_scores": True}),
    ("/tokenize", {"model": "tiny", "prompt": "a"}),
    ("/v1/tokenize", {"model": "tiny", "messages": CHAT["messages"], "return_token_strs": True}),
    ("/detokenize", {"model": "tiny", "tokens": [97]}),
    ("/v1/detokenize", {"model": "tiny", "tokens": []}),
]
GETS = ["/v1/models", "/v1/models/tiny", "/v1/models/single", "/v1/models/a/b", "/v1/server_info", "/load", "/health"]
GETS += ["/ready", "/version"]


@pytest.fixture
def described(service):
    """The document, made stricter: nothing may be in a reply that is not described."""
    strict = copy.deepcopy(document(service.infos))
    for schema in strict["components"]["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return strict


def operation(described, path, method):
    """What is said of a request."""
    matching = [p for p in described["paths"] if re.fullmatch(re.sub(r"\{\w+\}", ".+", p), path)]
    found = matching[0]
    return described["paths"][found][method]


def check(described, schema, body):
    jsonschema.Draft202012Validator({**schema, "components": described["components"]}).validate(body)


def check_answer(described, path, method, response):
    """The answer is one of those described."""
    said = operation(described, path, method)["responses"][str(response.status_code)]["content"]
    kind = response.headers["content-type"].partition(";")[0]
    if kind == "text/event-stream":
        *events, done, rest = response.text.split("\n\n")
        last, coded = said[kind]["itemSchema"]["properties"]["data"]["anyOf"]
        assert (done, rest) == (f"data: {last['const']}", "")
        for event in events:
            check(described, coded["contentSchema"], json.loads(event.removeprefix("data: ")))
    else:
        check(described, said[kind]["schema"], response.json())


def test_every_route_is_described_and_none_else(service, server, tally):
    routes = [route for route in build_http_app(service, server, tally).routes if isinstance(route, Route)]
    there = {(route.path.replace(":path", ""), method.lower()) for route in routes for method in route.methods}
    said = {(path, method) for path, item in document(service.infos)["paths"].items() for method in item}
    assert {item for item in there if item[1] != "head" and item[0] not in UNDESCRIBED} == said


@pytest.mark.parametrize(("path", "body"), POSTS)
async def test_requests_and_answers_are_as_described(http, described, path, body):
    schema = operation(described, path, "post")["requestBody"]["content"]["application/json"]["schema"]
    check(described, schema, body)
    response = await http.post(path, json=body)
    assert response.status_code == 200
    check_answer(described, path, "post", response)


@pytest.mark.parametrize("usage", [None, {"include_usage": True}])
@pytest.mark.parametrize("ids", [{}, IDS, {"n": 2, "logprobs": True, "prompt_logprobs": 1}])
@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
async def test_events_are_as_described(http, described, path, body, ids, usage):
    if path == "/v1/completions" and "logprobs" in ids:
        ids = {**ids, "logprobs": 2}
    response = await http.post(path, json={**body, **ids, "stream": True, "stream_options": usage})
    assert response.status_code == 200
    check_answer(described, path, "post", response)


@pytest.mark.parametrize("path", GETS)
async def test_what_is_asked_without_a_body_is_as_described(http, described, path):
    check_answer(described, path, "get", await http.get(path))


async def test_what_is_not_well_is_as_described(http, described, state):
    state.is_alive = state.is_ready = False
    for path in ("/health", "/ready"):
        check_answer(described, path, "get", await http.get(path))


@pytest.mark.parametrize(
    "error", [Overloaded("full"), EngineUnavailable("gone"), DeadlineExceeded("late"), ValueError()]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
async def test_errors_are_as_described(http, described, echo, counter, monkeypatch, path, error):
    async def fail(request):
        raise error
        yield

    monkeypatch.setattr(echo, "generate", fail)
    counter.failures[97] = error
    body = {"/v1/chat/completions": CHAT, "/v1/embeddings": {"model": "mapper", "input": "a"}}[path]
    response = await http.post(path, json=body)
    assert response.status_code >= 429
    check_answer(described, path, "post", response)


@pytest.mark.parametrize(
    "body", ["{", "[]", "null", '{"model": "huge", "messages": [{"role": "user", "content": "a"}]}']
)
async def test_refusals_are_as_described(http, described, body):
    response = await http.post("/v1/chat/completions", content=body)
    assert response.status_code in (400, 404)
    check_answer(described, "/v1/chat/completions", "post", response)


def test_what_the_checks_above_would_find(described):
    """They can fail: on a field too many, one too few, and one of another type."""
    schema = {"$ref": "#/components/schemas/StatusBody"}
    good: StatusBody = {"status": "ok"}
    check(described, schema, good)
    for bad in ({"status": "ok", "more": 1}, {}, {"status": "fine"}):
        with pytest.raises(jsonschema.ValidationError):
            check(described, schema, bad)


def test_bodies_name_the_models_of_their_task_and_null_is_nothing(described):
    schemas = described["components"]["schemas"]
    assert schemas["ChatCompletionRequest"]["properties"]["model"]["enum"] == ["tiny", "framing"]
    assert schemas["EmbeddingRequest"]["properties"]["model"]["enum"] == ["mapper"]
    assert "single" in schemas["TokenizeRequest"]["properties"]["model"]["enum"]
    schema = {"$ref": "#/components/schemas/ChatCompletionRequest"}
    check(described, schema, CHAT | {"temperature": None, "stop_token_ids": None})
    for bad in (CHAT | {"model": None}, CHAT | {"temperature": 3}, CHAT | {"nonsense": 1}, CHAT | {"messages": []}):
        with pytest.raises(jsonschema.ValidationError):
            check(described, schema, bad)


def test_every_status_of_an_error_is_explained():
    words = error_statuses()
    assert {400, 401, 404, 413, 429, 500, 503, 504} <= set(words)
    assert words[400].startswith("The request can never succeed")
    assert all(words.values())


async def test_a_stream_is_described_as_such(described):
    content = operation(described, "/v1/chat/completions", "post")["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}


async def test_the_document_and_the_page_are_served(http, service):
    assert (await http.get("/openapi.json")).json() == document(service.infos)
    page = await http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "openapi.json" in page.text
    assert not re.findall(r"(?:src|href)=.?(?:https?:)?//", page.text)  # nobody else is asked
    assert "connect-src 'self'" in page.headers["content-security-policy"]
