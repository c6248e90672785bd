"""Both wires give the same verdict on the same request, in the same words, and the same tokens."""

import json
import math
import re
from dataclasses import replace

import grpc
import pytest

from glm_cluster.api.proto import glm_pb2
from glm_cluster.errors import EngineUnavailable, Overloaded
from glm_cluster.records import TokenEvent
from glm_cluster.text.chat import ChatTemplate
from glm_cluster.text.tokenizer import Tokenizer

USER = {"role": "user", "content": "abc"}
CHAT = {"model": "tiny", "messages": [USER]}
TEXT = {"model": "tiny", "prompt": "abc"}
EOS = 256
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[a]"
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed")


def chat_message(body):
    """The ChatRequest that says what a JSON body says."""
    roles = {None: None, "system": 1, "user": 2, "assistant": 3}
    turns = [{"role": roles[m.get("role")], "content": m.get("content")} for m in body["messages"]]
    rest = {name: value for name, value in body.items() if name not in (*SAMPLING, "messages")}
    sampling = {name: body[name] for name in SAMPLING if name in body}
    return glm_pb2.ChatRequest(messages=turns, sampling=sampling or None, **rest)


def generate_message(body):
    """The GenerateRequest that says what a JSON body says."""
    rest = {name: value for name, value in body.items() if name not in (*SAMPLING, "prompt")}
    sampling = {name: body[name] for name in SAMPLING if name in body}
    prompt = body["prompt"]
    prompt = {"text": prompt} if isinstance(prompt, str) else {"token_ids": {"ids": prompt}}
    return glm_pb2.GenerateRequest(sampling=sampling or None, **prompt, **rest)


async def http_verdict(http, path, body):
    response = await http.post(path, content=json.dumps(body).replace("Infinity", "1e999"))
    return response.status_code, response.json()["error"]["message"]


async def chat_verdict(stub, body):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Chat(chat_message(body))
    return caught.value.code(), caught.value.details()


async def generate_verdict(stub, body):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [_ async for _ in stub.Generate(generate_message(body))]
    return caught.value.code(), caught.value.details()


BAD_FIELDS = [
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": math.inf}, "finite"),
    ({"temperature": 1e-300}, "temperature: .* 0, which is greedy, or at least 1e-05"),
    ({"temperature": 1e-38}, "temperature"),
    ({"temperature": 9.9e-6}, "temperature"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": 0}, "top_k"),
    ({"top_k": 2**31}, "top_k"),
    ({"top_k": 2**63 - 1}, "top_k"),
    ({"min_p": -1.0}, "min_p"),
    ({"min_p": 1.5}, "min_p"),
    ({"seed": -1}, "seed"),
    ({"prompt_lookup_num_tokens": -1}, "prompt_lookup_num_tokens"),
    ({"prompt_lookup_num_tokens": 2**31}, "prompt_lookup_num_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 99}, "99 max_tokens"),
    ({"max_tokens": 2**31 - 1}, "2147483647 max_tokens"),
    ({"max_tokens": 2**63 - 1}, "max_tokens: "),
    ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
    ({"stop_token_ids": [260]}, "260"),
    ({"stop_token_ids": [2**63 - 1]}, str(2**63 - 1)),
    ({"stop_token_ids": list(range(65))}, "stop_token_ids"),
]


@pytest.mark.parametrize(("fields", "words"), BAD_FIELDS)
async def test_bad_fields_are_refused_alike(http, stub, echo, fields, words):
    status, message = await http_verdict(http, "/v1/chat/completions", CHAT | fields)
    assert status == 400
    assert re.search(words, message)
    assert await chat_verdict(stub, CHAT | fields) == (grpc.StatusCode.INVALID_ARGUMENT, message)
    status, message = await http_verdict(http, "/v1/completions", TEXT | fields)
    assert status == 400
    assert re.search(words, message)
    assert await generate_verdict(stub, TEXT | fields) == (grpc.StatusCode.INVALID_ARGUMENT, message)
    assert echo.seen == []


@pytest.mark.parametrize("field", ["temperature", "top_k", "min_p", "top_p", "seed", "max_tokens", "stop_token_ids"])
@pytest.mark.parametrize("number", [2**63, 10**30, 10**4000])
async def test_numbers_no_tensor_holds_are_refused(http, echo, field, number):
    """Over HTTP alone: a protobuf message has no room for them."""
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)):
        status, message = await http_verdict(http, path, body | {field: [number] if field.endswith("ids") else number})
        assert status == 400
        assert field in message
    assert echo.seen == []


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0},
        {"temperature": 1e-5},
        {"temperature": 2.0},
        {"top_p": 1e-300},
        {"min_p": 1e-300},
        {"top_k": 2**31 - 1},
        {"seed": 2**63 - 1},
    ],
)
async def test_values_at_the_edge_are_taken_alike(http, stub, echo, fields):
    assert (await http.post("/v1/completions", json=TEXT | fields)).status_code == 200
    assert [chunk async for chunk in stub.Generate(generate_message(TEXT | fields))]
    over_http, over_grpc = ({name: getattr(seen.sampling, name) for name in fields} for seen in echo.seen)
    assert over_http == over_grpc == fields


@pytest.mark.parametrize("most", [None, 0, 3, 2**31 - 1])
async def test_how_much_may_be_guessed_reaches_the_engine_alike(http, stub, echo, most):
    fields = {} if most is None else {"prompt_lookup_num_tokens": most}
    await http.post("/v1/completions", json=TEXT | {"prompt_lookup_num_tokens": most})
    await http.post("/v1/chat/completions", json=CHAT | fields)
    assert [chunk async for chunk in stub.Generate(generate_message(TEXT | fields))]
    await stub.Chat(chat_message(CHAT | fields))
    assert [seen.max_drafts for seen in echo.seen] == [most] * 4


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "messages: "),
        ([USER] * 4097, "messages: Input should have at most 4096 items"),
        ([{"content": "a"}], "messages.0.role: Field required"),
        ([{"role": "user"}], "messages.0: a user message must have some content"),
        ([{"role": "user", "content": ""}], "messages.0: a user message"),
        ([{"role": "user", "content": "a" * 101}], "takes 100 tokens"),
    ],
)
async def test_bad_conversations_are_refused_alike(http, stub, echo, messages, words):
    body = CHAT | {"messages": messages}
    status, message = await http_verdict(http, "/v1/chat/completions", body)
    assert status == 400
    assert words in message
    assert await chat_verdict(stub, body) == (grpc.StatusCode.INVALID_ARGUMENT, message)
    assert echo.seen == []


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "prompt: "),
        ([], "prompt: "),
        ([260], "260"),
        ([-1], "prompt.0: "),
        ("a" * 100, "no room"),
        ([2**60], "259"),
    ],
)
async def test_bad_prompts_are_refused_alike(http, stub, echo, prompt, words):
    status, message = await http_verdict(http, "/v1/completions", TEXT | {"prompt": prompt})
    assert status == 400
    assert words in message
    verdict = await generate_verdict(stub, TEXT | {"prompt": prompt})
    assert verdict == (grpc.StatusCode.INVALID_ARGUMENT, message)
    assert echo.seen == []


async def test_another_model_is_not_found_alike(http, stub):
    status, message = await http_verdict(http, "/v1/chat/completions", CHAT | {"model": "huge"})
    assert status == 404
    assert await chat_verdict(stub, CHAT | {"model": "huge"}) == (grpc.StatusCode.NOT_FOUND, message)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Overloaded("full; try again"), 429, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (EngineUnavailable("no engine; try again"), 503, grpc.StatusCode.UNAVAILABLE),
        (ZeroDivisionError("secret"), 500, grpc.StatusCode.INTERNAL),
    ],
)
async def test_errors_of_the_engine_leave_alike(http, stub, echo, error, status, code):
    echo.error = error
    body = TEXT | {"prompt": "a~"}
    seen, message = await http_verdict(http, "/v1/completions", body)
    assert seen == status
    assert "secret" not in message
    assert await generate_verdict(stub, body) == (code, message)


async def test_an_engine_that_is_full_is_told_alike(http, stub, echo, monkeypatch):
    """Refused before its first token, whatever way the answer was to come."""

    async def generate(request):
        raise Overloaded("1024 requests are waiting here; try later")
        yield

    monkeypatch.setattr(echo, "generate", generate)
    for stream in (False, True):
        for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)):
            response = await http.post(path, json=body | {"stream": stream})
            assert (response.status_code, response.headers["retry-after"]) == (429, "1")
            assert response.json()["error"]["code"] == "overloaded"
    expected = grpc.StatusCode.RESOURCE_EXHAUSTED, "1024 requests are waiting here; try later"
    assert await chat_verdict(stub, CHAT) == await generate_verdict(stub, TEXT) == expected
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ChatStream(chat_message(CHAT)).read()
    assert (caught.value.code(), caught.value.details()) == expected


ENDS_AT_THE_ROLE = TEMPLATE.replace("[a]", "<|end|>")


@pytest.mark.parametrize(("template", "shown"), [(ENDS_AT_THE_ROLE, "\nb!"), (TEMPLATE, "\n\nb!")])
async def test_the_line_break_after_the_role_is_not_shown(
    http, stub, service, echo, byte_checkpoint, monkeypatch, template, shown
):
    """GLM-4's prompt ends in a control token and the model itself goes to the next line; ChatML's prompt does that."""
    tokenizer = Tokenizer.from_directory(byte_checkpoint)
    tiny = replace(service.model("tiny", "generate"), template=ChatTemplate(template, tokenizer.special_ids, {}))
    monkeypatch.setitem(service._models, "tiny", tiny)
    ids = (*b"\n\nb!", EOS)

    async def generate(request):
        for index, token in enumerate(ids):
            finish = "stop" if token == EOS else None
            yield TokenEvent(request.request_id, request.attempt, index, (token,), finish)

    monkeypatch.setattr(echo, "generate", generate)
    body = CHAT | {"return_token_ids": True}
    answer = (await http.post("/v1/chat/completions", json=body)).json()["choices"][0]
    assert (answer["message"]["content"], tuple(answer["token_ids"])) == (shown, ids)
    lines = (await http.post("/v1/chat/completions", json=body | {"stream": True})).text.split("\n\n")
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-2]]
    assert "".join(choice["delta"]["content"] for choice in choices) == shown
    assert tuple(id for choice in choices for id in choice["token_ids"]) == ids
    whole = await stub.Chat(chat_message(body))
    assert (whole.choices[0].message.content, tuple(whole.choices[0].token_ids)) == (shown, ids)
    chunks = [chunk async for chunk in stub.ChatStream(chat_message(body))]
    assert "".join(chunk.content for chunk in chunks) == shown
    assert tuple(id for chunk in chunks for id in chunk.token_ids) == ids
    text = TEXT | {"prompt": [ord("a"), EOS]}  # a completion is shown as it is
    assert (await http.post("/v1/completions", json=text)).json()["choices"][0]["text"] == "\n\nb!"


@pytest.mark.parametrize("prompt", ["abc!", list("漢字!".encode())])
async def test_answers_are_alike(http, stub, prompt):
    body = TEXT | {"prompt": prompt, "return_token_ids": True, "max_tokens": 20}
    over_http = (await http.post("/v1/completions", json=body)).json()
    chunks = [chunk async for chunk in stub.Generate(generate_message(body))]
    assert [id for chunk in chunks for id in chunk.token_ids] == over_http["choices"][0]["token_ids"]
    assert list(chunks[0].prompt_token_ids) == over_http["choices"][0]["prompt_token_ids"]
    assert not any(chunk.prompt_token_ids for chunk in chunks[1:])
    assert "".join(chunk.text for chunk in chunks) == over_http["choices"][0]["text"]
    usage, cached = chunks[-1].usage, over_http["usage"].pop("prompt_tokens_details")
    assert over_http["usage"] == {
        name: getattr(usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    }
    assert usage.cached_tokens == cached["cached_tokens"]
    assert chunks[-1].finish_reason == glm_pb2.FINISH_REASON_STOP
    assert not any(chunk.finish_reason or chunk.HasField("usage") for chunk in chunks[:-1])


async def test_requests_are_counted_by_wire_route_and_status(http, stub, tally):
    await http.post("/v1/completions", json=TEXT)
    await http.post("/v1/chat/completions", json=CHAT | {"model": "huge"})
    await stub.Chat(chat_message(CHAT))
    await chat_verdict(stub, CHAT | {"top_k": 0})
    counted = [tuple(tags.values()) for name, _, tags in tally.counted if name == "glm_requests_total"]
    assert counted == [
        ("http", "completions", "ok"),
        ("http", "chat", "model_not_found"),
        ("grpc", "chat", "ok"),
        ("grpc", "chat", "invalid_request"),
    ]
