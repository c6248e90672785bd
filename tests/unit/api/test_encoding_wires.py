"""Both wires give the same verdict on the same inputs, in the same words, and the same numbers."""

import base64
import json
import math
import struct

import grpc
import pytest

from glm_cluster.api import encodings
from glm_cluster.api.proto import glm_pb2
from glm_cluster.errors import EngineUnavailable, Overloaded

EMBED = {"model": "mapper", "input": ["aab"]}
CLASSIFY = {"model": "single", "input": ["aab"]}
TAG = {"model": "tagger", "input": ["aab"]}
POOLINGS = {"last": glm_pb2.POOLING_LAST, "mean": glm_pb2.POOLING_MEAN}
WIRES = [
    pytest.param("/v1/embeddings", "Embed", glm_pb2.EmbedRequest, EMBED, id="embeddings"),
    pytest.param("/v1/classify", "Classify", glm_pb2.ClassifyRequest, CLASSIFY, id="classify"),
    pytest.param("/v1/classify_tokens", "ClassifyTokens", glm_pb2.ClassifyTokensRequest, TAG, id="classify_tokens"),
]
every_wire = pytest.mark.parametrize(("path", "method", "kind", "body"), WIRES)


def message(kind, body):
    """The protobuf message that says what a JSON body says."""
    inputs = [{"text": item} if isinstance(item, str) else {"token_ids": {"ids": item}} for item in body["input"]]
    rest = {name: value for name, value in body.items() if name not in ("input", "pooling", "encoding_format")}
    if "pooling" in body:
        rest["pooling"] = POOLINGS[body["pooling"]]
    return kind(input=inputs, **rest)


async def over_http(http, path, body):
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    assert int(response.headers["content-length"]) == len(response.content)
    return response.json()


async def refusals(http, stub, path, method, kind, body):
    """Both wires' statuses, and the words they must share."""
    response = await http.post(path, json=body)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub, method)(message(kind, body))
    words = response.json()["error"]["message"]
    assert caught.value.details() == words
    return response.status_code, caught.value.code(), words


@every_wire
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([""], "input.0: Input should not be empty"),
        (["a", ""], "input.1: Input should not be empty"),
        ([[97], []], "input.1: Input should not be empty"),
        (["a", [97]], "input.1: Input should be a valid string"),
        ([[97], "a"], "input.1: Input should be a valid list"),
        ([[-1]], "input.0.0: Input should be greater than or equal to 0"),
        ([[1, 260]], "input.0: no token id 260; ids go up to 259"),
        ([[2**63 - 1]], "input.0: no token id 9223372036854775807; ids go up to 259"),
        (["a"] * 2049, "input: Input should have at most 2048 items"),
        (["a", "a" * 49], "input.1: This model's maximum context length is 50 tokens."),
    ],
)
async def test_bad_inputs_are_refused_alike(http, stub, counter, path, method, kind, body, given, words):
    status, code, told = await refusals(http, stub, path, method, kind, body | {"input": given})
    assert (status, code) == (400, grpc.StatusCode.INVALID_ARGUMENT)
    assert told.startswith(words)
    assert counter.seen == []


@every_wire
async def test_inputs_that_exceed_the_context_are_recognised(http, stub, path, method, kind, body):
    """By OpenAI's code and in its words, as those who ask for answers are told."""
    body = body | {"input": ["a", "a" * 49]}
    error = (await http.post(path, json=body)).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input.1")
    assert "requested 51 tokens in the input. Shorten or split it." in error["message"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub, method)(message(kind, body))
    assert b"CONTEXT_LENGTH_EXCEEDED" in dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    assert (await http.post(path, json=body | {"input": ["a" * 48]})).status_code == 200


@every_wire
@pytest.mark.parametrize(
    ("model", "status", "code"),
    [("huge", 404, grpc.StatusCode.NOT_FOUND), ("tiny", 400, grpc.StatusCode.INVALID_ARGUMENT)],
)
async def test_other_models_are_refused_alike(http, stub, path, method, kind, body, model, status, code):
    given = await refusals(http, stub, path, method, kind, body | {"model": model})
    assert given[:2] == (status, code)


@every_wire
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Overloaded("full; try again"), 429, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (EngineUnavailable("no engine; try again"), 503, grpc.StatusCode.UNAVAILABLE),
        (ZeroDivisionError("secret"), 500, grpc.StatusCode.INTERNAL),
    ],
)
async def test_errors_of_the_engine_leave_alike(
    http, stub, counter, monkeypatch, path, method, kind, body, error, status, code
):
    monkeypatch.setattr(encodings, "_PAUSES_S", (0.0,) * 3)  # a full engine is asked again for half a minute else
    counter.failures = {ord("~"): error}
    given = await refusals(http, stub, path, method, kind, body | {"input": ["a", "~"]})
    assert given[:2] == (status, code)
    assert "secret" not in given[2]


@every_wire
async def test_numbers_that_are_none_never_leave(http, stub, counter, path, method, kind, body):
    counter.rows_instead = [[1.0, math.nan, 0.0]] * (5 if method == "ClassifyTokens" else 1)
    status, code, words = await refusals(http, stub, path, method, kind, body)
    assert (status, code) == (500, grpc.StatusCode.INTERNAL)
    assert "not finite" in words


@every_wire
async def test_requests_are_counted_by_wire_route_and_status(http, stub, tally, path, method, kind, body):
    await http.post(path, json=body)
    await getattr(stub, method)(message(kind, body))
    await refusals(http, stub, path, method, kind, body | {"input": [""]})
    counted = [tuple(tags.values()) for name, _, tags in tally.counted if name == "glm_requests_total"]
    route = path.removeprefix("/v1/")
    assert counted == [(wire, route, status) for status in ("ok", "invalid_request") for wire in ("http", "grpc")]


def same_usage(ours, theirs):
    cached = ours["prompt_tokens_details"]["cached_tokens"]
    assert ours["prompt_tokens"] == ours["total_tokens"] == theirs.prompt_tokens == theirs.total_tokens
    assert (cached, 0) == (theirs.cached_tokens, theirs.completion_tokens)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pooling": "mean"},
        {"pooling": "last", "normalize": False},
        {"add_special_tokens": False, "pooling": "mean", "normalize": False},
        {"input": [[97, 98, 256], [99]]},
        {"input": ["a" * n for n in range(1, 40)]},
    ],
)
async def test_vectors_are_alike(http, stub, fields):
    body = EMBED | fields
    ours = await over_http(http, "/v1/embeddings", body)
    coded = await over_http(http, "/v1/embeddings", body | {"encoding_format": "base64"})
    theirs = await stub.Embed(message(glm_pb2.EmbedRequest, body))
    assert len(theirs.embeddings) == len(body["input"])
    for index, (one, code, other) in enumerate(zip(ours["data"], coded["data"], theirs.embeddings, strict=True)):
        assert one["index"] == code["index"] == other.index == index
        assert one["embedding"] == list(other.values)
        assert base64.b64decode(code["embedding"]) == struct.pack(f"<{len(other.values)}f", *other.values)
    same_usage(ours["usage"], theirs.usage)
    assert theirs.id.startswith("embd-")


def verdict(ours, theirs, labels):
    """One verdict, compared; its scores if it has any."""
    for name in ("label", "score"):
        assert ours[name] == (getattr(theirs, name) if theirs.HasField(name) else None)
    assert list(ours.get("scores", {}).items()) == [(pair.label, pair.score) for pair in theirs.scores]
    assert ours.get("labels", []) == list(theirs.labels)
    assert ("labels" in ours) == labels


@pytest.mark.parametrize("model", ["single", "multi", "value", "values"])
@pytest.mark.parametrize(
    "fields", [{}, {"raw_scores": True}, {"add_special_tokens": False}, {"input": [[97, 99], [98], [98, 98]]}]
)
async def test_labels_are_alike(http, stub, model, fields):
    body = CLASSIFY | {"model": model} | fields
    ours = await over_http(http, "/v1/classify", body)
    theirs = await stub.Classify(message(glm_pb2.ClassifyRequest, body))
    assert len(theirs.classifications) == len(body["input"])
    for one, other in zip(ours["data"], theirs.classifications, strict=True):
        assert one["index"] == other.index
        verdict(one, other, model == "multi")
        assert len(one["scores"]) == (1 if model == "value" else 3)
    same_usage(ours["usage"], theirs.usage)
    assert (ours["id"][:5], theirs.id[:5], ours["model"], theirs.model) == ("clsf-", "clsf-", model, model)


@pytest.mark.parametrize("model", ["tagger", "multi-tagger"])
@pytest.mark.parametrize("scores", [True, False])
@pytest.mark.parametrize(
    "fields", [{}, {"raw_scores": True}, {"input": ["é漢😀", "cab"]}, {"input": [[97], [98, 256]]}]
)
async def test_labels_of_tokens_are_alike(http, stub, model, fields, scores):
    body = TAG | {"model": model, "include_scores": scores} | fields
    ours = await over_http(http, "/v1/classify_tokens", body)
    theirs = await stub.ClassifyTokens(message(glm_pb2.ClassifyTokensRequest, body))
    assert len(theirs.inputs) == len(body["input"])
    for one, other in zip(ours["data"], theirs.inputs, strict=True):
        assert one["index"] == other.index
        assert [token["token_id"] for token in one["tokens"]] == [token.token_id for token in other.tokens]
        for token, named in zip(one["tokens"], other.tokens, strict=True):
            assert token["text"] == named.text
            assert token["start"] == (named.start if named.HasField("start") else None)
            assert token["end"] == (named.end if named.HasField("end") else None)
            assert ("scores" in token) == scores
            verdict(token, named, model == "multi-tagger")
    same_usage(ours["usage"], theirs.usage)


async def test_a_classification_has_this_shape(http):
    body = await over_http(http, "/v1/classify", {"model": "multi", "input": "aab", "raw_scores": True})
    assert body.pop("id").startswith("clsf-")
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "object": "list",
        "model": "multi",
        "data": [
            {
                "index": 0,
                "label": "a",
                "score": 2.0,
                "scores": {"a": 2.0, "b": 1.0, "c": 0.0},
                "labels": ["a", "b", "c"],
            }
        ],
        "usage": {"prompt_tokens": 5, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2}},
    }


async def test_a_classification_of_tokens_has_this_shape(http):
    body = await over_http(http, "/v1/classify_tokens", {"model": "tagger", "input": "b", "raw_scores": True})
    assert json.dumps(body["data"][0]["tokens"][0]["end"]) == "1"  # true would be equal to it
    assert body["data"] == [
        {"index": 0, "tokens": [{"token_id": 98, "text": "b", "start": 0, "end": 1, "label": "b", "score": 1.0}]}
    ]
    ids = await over_http(http, "/v1/classify_tokens", {"model": "tagger", "input": [97], "raw_scores": True})
    (token,) = ids["data"][0]["tokens"]
    assert (token["start"], token["end"], token["text"]) == (None, None, "a")


async def test_half_a_surrogate_pair_is_shown_as_it_was_sent(http):
    """It is tokenised as the replacement character, and covers the one character that was sent."""
    content = rb'{"model": "tagger", "input": "\ud800a"}'
    response = await http.post("/v1/classify_tokens", content=content)
    tokens = response.json()["data"][0]["tokens"]
    assert [(token["text"], token["start"], token["end"]) for token in tokens] == [("\ud800", 0, 1)] * 3 + [("a", 1, 2)]


@pytest.mark.parametrize("pooling", [glm_pb2.POOLING_UNSPECIFIED, 9])
async def test_poolings_that_are_none_are_refused(stub, pooling):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Embed(glm_pb2.EmbedRequest(model="mapper", input=[{"text": "a"}], pooling=pooling))
    assert caught.value.details() == "pooling: Input should be 'last' or 'mean'"


async def test_missing_inputs_are_refused_alike(http, stub):
    response = await http.post("/v1/embeddings", content=json.dumps({"model": "mapper"}))
    for given, words in (([], "input: Field required"), ([{}], "input: Input should be a string")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Embed(glm_pb2.EmbedRequest(model="mapper", input=given))
        assert caught.value.details().startswith(words)
    assert response.json()["error"]["message"] == "input: Field required"


async def test_fields_of_a_newer_schema_are_refused(stub, counter):
    newer = glm_pb2.Input()
    newer.MergeFromString(glm_pb2.Input(text="a").SerializeToString() + b"\x98\x06\x01")  # field 99 is 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Classify(glm_pb2.ClassifyRequest(model="single", input=[{"text": "a"}, newer]))
    assert "input.1.field 99" in caught.value.details()
    assert counter.seen == []


@every_wire
async def test_a_long_reply_is_whole(http, stub, counter, path, method, kind, body):
    """Longer than what is made at one go, or goes out in one message."""
    if method == "ClassifyTokens":
        body = body | {"input": ["cab" * 16] * 40, "include_scores": True}
    else:
        counter.rows_instead = [[i / 7 for i in range(3 if method == "Classify" else 3000)]]
        body = body | {"input": ["aab"] * (1200 if method == "Classify" else 5)}
    response = await http.post(path, json=body)
    assert len(response.content) > 128 << 10
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(len(body["input"])))
    reply = await getattr(stub, method)(message(kind, body))
    (items,) = (value for field, value in reply.ListFields() if field.message_type and field.name != "usage")
    assert [item.index for item in items] == list(range(len(body["input"])))
    assert not {json.dumps(item | {"index": 0}) for item in data[1:]} - {json.dumps(data[0])}
