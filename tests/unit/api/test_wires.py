"""Both wires give the same verdict on the same request, in the same words, and the same tokens."""

import json
import math
import re
from dataclasses import replace

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from glm_cluster.api.proto import glm_pb2
from glm_cluster.errors import EngineUnavailable, Overloaded
from glm_cluster.records import Grammar, TokenEvent
from glm_cluster.text.chat import ChatTemplate
from glm_cluster.text.tokenizer import Tokenizer

USER = {"role": "user", "content": "abc"}
CHAT = {"model": "tiny", "messages": [USER]}
TEXT = {"model": "tiny", "prompt": "abc"}
EOS = 256
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[a]"
SAMPLING = {field.name for field in glm_pb2.Sampling.DESCRIPTOR.fields}


def chat_message(body):
    """The ChatRequest that says what a JSON body says."""
    roles = {None: None, "system": 1, "user": 2, "assistant": 3}
    turns = [{"role": roles[m.get("role")], "content": m.get("content")} for m in body["messages"]]
    return glm_pb2.ChatRequest(messages=turns, **fields(body))


def generate_message(body):
    """The GenerateRequest that says what a JSON body says."""
    match body["prompt"]:
        case [str() | list(), *_] as several:
            prompt = {"prompts": {"prompts": [input_of(one) for one in several]}}
        case one:
            prompt = input_of(one)
    return glm_pb2.GenerateRequest(**prompt, **fields(body))


def input_of(prompt):
    return {"text": prompt} if isinstance(prompt, str) else {"token_ids": {"ids": prompt}}


def fields(body):
    """The other fields, in the places where a message has them."""
    rest = {name: value for name, value in body.items() if name not in ("messages", "prompt", "stream")}
    if isinstance(rest.get("stop"), str):
        rest["stop"] = [rest["stop"]]
    if "logit_bias" in rest:
        rest["logit_bias"] = {int(id): bias for id, bias in rest["logit_bias"].items()}
    if "allowed_token_ids" in rest:
        rest["allowed_token_ids"] = {"ids": rest["allowed_token_ids"]}
    if "stream_options" in rest:
        rest["continuous_usage_stats"] = rest.pop("stream_options")["continuous_usage_stats"]
    if "reasoning_effort" in rest:
        rest["reasoning_effort"] = f"REASONING_EFFORT_{rest['reasoning_effort'].upper()}"
    if "choice" in (form := rest.get("structured_outputs", {})):
        rest["structured_outputs"] = {"choice": {"texts": form["choice"]}}
    if "chat_template_kwargs" in rest:
        kinds = {bool: "boolean", int: "integer", float: "number", str: "text"}
        given = rest["chat_template_kwargs"]
        rest["chat_template_kwargs"] = {
            name: {} if value is None else {kinds[type(value)]: value} for name, value in given.items()
        }
    sampling = {name: rest.pop(name) for name in SAMPLING if name in rest}
    return rest | ({"sampling": sampling} if sampling else {})


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
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 2**31}, "top_k"),
    ({"top_k": 2**63 - 1}, "top_k"),
    ({"min_p": -1.0}, "min_p"),
    ({"min_p": 1.5}, "min_p"),
    ({"prompt_lookup_num_tokens": -1}, "prompt_lookup_num_tokens"),
    ({"prompt_lookup_num_tokens": 2**31}, "prompt_lookup_num_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 99}, "99 in the completion"),
    ({"max_tokens": 2**31 - 1}, "2147483647 in the completion"),
    ({"max_tokens": 2**63 - 1}, "max_tokens: "),
    ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
    ({"stop_token_ids": [260]}, "260"),
    ({"stop_token_ids": [2**63 - 1]}, str(2**63 - 1)),
    ({"stop_token_ids": list(range(65))}, "stop_token_ids"),
    ({"n": 0}, "n: "),
    ({"n": 129}, "n: "),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"repetition_penalty": 5e-324}, "repetition_penalty"),
    ({"repetition_penalty": 0.009}, "repetition_penalty"),
    ({"repetition_penalty": 11.0}, "repetition_penalty"),
    ({"logit_bias": {"5": 101.0}}, "logit_bias.5: "),
    ({"logit_bias": {"260": 1.0}}, "logit_bias: no token id 260"),
    ({"logit_bias": {"-1": 1.0}}, "logit_bias: Names should be token ids"),
    ({"logit_bias": {str(id): 1.0 for id in range(1025)}}, "logit_bias: Input should have at most 1024"),
    ({"allowed_token_ids": [260]}, "allowed_token_ids: no token id 260"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids.0"),
    ({"allowed_token_ids": [1] * 65537}, "allowed_token_ids: Input should have at most 65536"),
    ({"bad_words": [""]}, "bad_words.0"),
    ({"bad_words": ["a", " "]}, "bad_words: Words should have"),
    ({"bad_words": ["a"] * 257}, "bad_words: Input should have at most 256"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens: 5 is more than max_tokens, 4"),
    ({"min_tokens": 99}, "99 in the completion"),
    ({"stop": [""]}, "stop.0"),
    ({"stop": ["a" * 257]}, "stop.0"),
    ({"stop": ["a"] * 17}, "stop: Input should have at most 16"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens: Input should be at least 1, or -1"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"user": ""}, "user"),
    ({"user": "a" * 513}, "user"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"priority": 2**31}, "priority"),
    ({"structured_outputs": {}}, "structured_outputs: give exactly one"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs: it is not JSON"),
    ({"structured_outputs": {"json": '{"not": {}}'}}, "structured_outputs: .*not"),
    ({"structured_outputs": {"json": "[" * 9999}}, "structured_outputs: it is nested more than 64 deep"),
    ({"structured_outputs": {"json": " " * 65537}}, "structured_outputs.json: .* at most 65536 bytes"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs: .*regex"),
    ({"structured_outputs": {"regex": "a" * 4097}}, "structured_outputs: a regex has more than 4096 bytes"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs: .*nothing"),
    ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "structured_outputs: .*ignore_eos"),
    ({"structured_outputs": {"regex": "a"}, "min_tokens": 1}, "structured_outputs: .*min_tokens"),
    ({"structured_outputs": {"regex": "a"}, "allowed_token_ids": [1]}, "structured_outputs: .*allowed_token_ids"),
    ({"structured_outputs": {"regex": "a"}, "bad_words": ["a"]}, "structured_outputs: .*bad_words"),
]
BAD_CHAT_FIELDS = [
    ({"top_logprobs": 3}, "top_logprobs may only be given with logprobs: true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"add_generation_prompt": True, "continue_final_message": True}, "exclude each other"),
    ({"chat_template_kwargs": {"enable_thinking": True}}, "asks for no enable_thinking"),
    ({"reasoning_effort": "high"}, "reasoning_effort: this model reasons as it does, or not at all with 'none'"),
    (
        {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
        "reasoning_effort excludes enable_thinking",
    ),
    ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template cannot be given here"),
    ({"chat_template_kwargs": {"a" * 65: True}}, "chat_template_kwargs"),
]
BAD_TEXT_FIELDS = [
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"prompt": ["a"] * 257}, "prompt: Input should have at most 256"),
    ({"prompt": ["a"] * 3, "n": 100}, "n: 300 choices"),
    ({"prompt": ["a", ""]}, "prompt.1: Input should not be empty"),
    ({"prompt": [[1], []]}, "prompt.1: Input should not be empty"),
    ({"prompt": [[1], [260]]}, "prompt.1: no token id 260"),
    ({"prompt": ["a", "a" * 100]}, "prompt.1: This model's maximum context length is 100 tokens"),
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


FORMS = [
    ({"json": '{"type":"object"}'}, Grammar("json_schema", '{"type":"object"}')),
    ({"json_object": True}, Grammar("json", "")),
    ({"regex": "é+"}, Grammar("regex", "é+")),
    ({"choice": ["é", "b"]}, Grammar("choice", '["é", "b"]')),
    ({"grammar": 'start: "a"'}, Grammar("lark", 'start: "a"')),
]


@pytest.mark.parametrize(("form", "grammar"), FORMS)
async def test_a_form_reaches_the_engine_alike(http, stub, echo, form, grammar):
    """In the conversations of this template an answer begins where the role's line ends."""
    asked = {"structured_outputs": form, "max_tokens": 2, "n": 2}
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)):
        assert (await http.post(path, json=body | asked)).status_code == 200
    await stub.Chat(chat_message(CHAT | asked))
    assert [chunk async for chunk in stub.Generate(generate_message(TEXT | asked))]
    assert [one.sampling.grammar for one in echo.seen] == [grammar] * 8


async def test_openais_form_reaches_the_engine(http, echo):
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert (await http.post("/v1/chat/completions", json=CHAT | {"response_format": form})).status_code == 200
    (one,) = echo.seen
    assert json.loads(one.sampling.grammar.source) == schema
    assert list(json.loads(one.sampling.grammar.source)["properties"]) == ["b", "a"]


async def test_openais_form_is_refused_by_its_name(http, echo):
    unkept = {"name": "x", "schema": {"uniqueItems": True}}
    form = {"type": "json_schema", "json_schema": {**unkept, "strict": True}}
    status, message = await http_verdict(http, "/v1/chat/completions", CHAT | {"response_format": form})
    assert status == 400
    assert message.startswith("response_format: ")
    assert "uniqueItems" in message
    assert echo.seen == []
    for strict in ({}, {"strict": False}, {"strict": None}):
        loose = {"type": "json_schema", "json_schema": {**unkept, **strict}}
        assert (await http.post("/v1/chat/completions", json=CHAT | {"response_format": loose})).status_code == 200
    assert [one.sampling.grammar.kind for one in echo.seen] == ["loose_schema"] * 3


@pytest.mark.parametrize(("fields", "words"), BAD_CHAT_FIELDS)
async def test_bad_fields_of_conversations_are_refused_alike(http, stub, echo, fields, words):
    status, message = await http_verdict(http, "/v1/chat/completions", CHAT | fields)
    assert status == 400
    assert words in message
    assert await chat_verdict(stub, CHAT | fields) == (grpc.StatusCode.INVALID_ARGUMENT, message)
    assert echo.seen == []


@pytest.mark.parametrize(("fields", "words"), BAD_TEXT_FIELDS)
async def test_bad_fields_of_completions_are_refused_alike(http, stub, echo, fields, words):
    status, message = await http_verdict(http, "/v1/completions", TEXT | fields)
    assert status == 400
    assert words in message
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
        {"top_p": 0.0},
        {"top_p": 1e-300},
        {"min_p": 1e-300},
        {"top_k": 2**31 - 1},
        {"seed": 2**63 - 1},
        {"seed": 0},
        {"presence_penalty": -2.0, "frequency_penalty": 2.0, "repetition_penalty": 10.0},
        {"min_tokens": 97},
    ],
)
async def test_values_at_the_edge_are_taken_alike(http, stub, echo, fields):
    assert (await http.post("/v1/completions", json=TEXT | fields)).status_code == 200
    assert [chunk async for chunk in stub.Generate(generate_message(TEXT | fields))]
    over_http, over_grpc = ({name: getattr(seen.sampling, name) for name in fields} for seen in echo.seen)
    assert over_http == over_grpc == fields


@pytest.mark.parametrize(
    ("asked", "done"),
    [
        ({"temperature": 1e-8}, {"temperature": 0.0}),
        ({"temperature": 9.9e-6}, {"temperature": 0.0}),
        ({"temperature": 5e-324}, {"temperature": 0.0}),
        ({"seed": -2}, {"seed": 2**63 - 2}),
        ({"seed": -(2**63)}, {"seed": 0}),
    ],
)
async def test_what_comes_to_the_same_is_taken_for_it(http, stub, echo, asked, done):
    assert (await http.post("/v1/completions", json=TEXT | asked)).status_code == 200
    assert [chunk async for chunk in stub.Generate(generate_message(TEXT | asked))]
    over_http, over_grpc = ({name: getattr(seen.sampling, name) for name in done} for seen in echo.seen)
    assert over_http == over_grpc == done


async def test_a_whole_number_may_be_written_as_a_float(http, echo):
    """JSON knows no difference, nor does the OpenAPI document."""
    fields = {"max_tokens": 3.0, "top_k": 5.0, "seed": 7.0, "n": 1.0, "min_tokens": 1.0, "priority": -1.0}
    assert (await http.post("/v1/completions", json=TEXT | fields)).status_code == 200
    sampling = echo.seen[0].sampling
    assert (sampling.max_tokens, sampling.top_k, sampling.seed, sampling.min_tokens) == (3, 5, 7, 1)
    assert {type(number) for number in (sampling.max_tokens, sampling.top_k, echo.seen[0].priority)} == {int}
    for wrong in ({"max_tokens": 3.5}, {"max_tokens": 1e300}, {"top_k": True}, {"seed": "7"}):
        assert (await http.post("/v1/completions", json=TEXT | wrong)).status_code == 400


async def test_a_seed_of_minus_one_is_none(http, echo):
    for _ in range(2):
        assert (await http.post("/v1/completions", json=TEXT | {"seed": -1})).status_code == 200
    first, second = (seen.sampling.seed for seen in echo.seen)
    assert first != second


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
        ([{"role": "system"}], "messages.0: a system message must have some content"),
        ([{"role": "user", "content": "a" * 101}], "maximum context length is 100 tokens"),
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
        ("a" * 100, "maximum context length is 100 tokens"),
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


TOO_LONG = [
    ({"prompt": "a" * 100}, "prompt", (101, 100, 1), "Shorten the prompt."),
    ({"prompt": "a" * 120, "max_tokens": 30}, "prompt", (150, 120, 30), "Shorten the prompt."),
    ({"prompt": "a" * 100, "max_tokens": 0}, "prompt", (101, 100, 1), "Shorten the prompt."),
    ({"max_tokens": 98}, "prompt", (101, 3, 98), "Shorten the prompt, or ask for 97 tokens at most."),
    ({"min_tokens": 98}, "prompt", (101, 3, 98), "Shorten the prompt, or ask for 97 tokens at most."),
    ({"prompt": ["a", "b", "c", "a" * 100]}, "prompt.3", (101, 100, 1), "Shorten the prompt."),
    ({"prompt": [[1], [1] * 90], "max_tokens": 11}, "prompt.1", (101, 90, 11), "or ask for 10 tokens at most."),
    ({"messages": [{"role": "user", "content": "a" * 101}]}, "messages", (111, 110, 1), "Shorten the messages."),
    ({"messages": [USER], "max_tokens": 99}, "messages", (111, 12, 99), "ask for 88 tokens at most."),
]


@pytest.mark.parametrize(("fields", "param", "counts", "advice"), TOO_LONG)
async def test_what_exceeds_the_context_is_recognised_alike(http, stub, echo, fields, param, counts, advice):
    """Gateways and agents shorten a conversation by themselves if they are told by OpenAI's code, or in its words."""
    chat = "messages" in fields
    body = (CHAT if chat else TEXT) | fields
    response = await http.post("/v1/chat/completions" if chat else "/v1/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert "this model's maximum context length is 100 tokens" in error["message"].lower()  # LiteLLM's way
    told = re.search(r"requested (\d+) tokens \((\d+) in the \w+, (\d+) in the completion\)", error["message"])
    assert tuple(map(int, told.groups())) == counts
    assert error["message"].startswith(f"{param}: ")
    assert error["message"].endswith(advice)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = await stub.Chat(chat_message(body)) if chat else [_ async for _ in stub.Generate(generate_message(body))]
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, error["message"])
    assert details(caught.value) == ("CONTEXT_LENGTH_EXCEEDED", param)
    assert echo.seen == []


def details(error: grpc.aio.AioRpcError) -> tuple[str, str]:
    """The reason and the field of a refusal, in google.rpc's messages."""
    status = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info, bad = ErrorInfo(), BadRequest()
    status.details[0].Unpack(info)
    status.details[1].Unpack(bad)
    return info.reason, bad.field_violations[0].field


@pytest.mark.parametrize("fields", [{"max_tokens": 97}, {"min_tokens": 97}, {"prompt": "a" * 99}])
async def test_what_just_fits_the_context_is_answered_alike(http, stub, fields):
    assert (await http.post("/v1/completions", json=TEXT | fields)).status_code == 200
    assert [chunk async for chunk in stub.Generate(generate_message(TEXT | fields))]


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
    await chat_verdict(stub, CHAT | {"top_k": -2})
    counted = [tuple(tags.values()) for name, _, tags in tally.counted if name == "glm_requests_total"]
    assert counted == [
        ("http", "completions", "ok"),
        ("http", "chat", "model_not_found"),
        ("grpc", "chat", "ok"),
        ("grpc", "chat", "invalid_request"),
    ]


ALIKE = [
    {},
    {"n": 3, "seed": 5},
    {"n": 2, "seed": 1, "stop": "a"},
    {"stop": ["ba", "c"], "include_stop_str_in_output": True},
    {"stop": ["ba"], "min_tokens": 3},
    {"stop_token_ids": [ord("b")]},
    {"stop_token_ids": [ord("b")], "include_stop_str_in_output": True},
    {"logit_bias": {"5": -100.0, "7": 1.5}, "bad_words": ["ab", " ab", "c"], "allowed_token_ids": [5, 7, 5]},
    {"ignore_eos": True, "presence_penalty": 1.0, "frequency_penalty": -1.0, "repetition_penalty": 1.5},
    {"prompt_logprobs": 2},
    {"truncate_prompt_tokens": 2},
    {"cache_salt": "s", "priority": -4, "user": "me"},
]
CHAT_ALIKE = [
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 4, "n": 2, "seed": 3, "stop": ["a"]},
    {"continue_final_message": True},
    {"add_generation_prompt": False},
    {"chat_template_kwargs": {"messages_": None}, "seed": 1},
]
TEXT_ALIKE = [
    {"logprobs": 0},
    {"logprobs": 3, "echo": True},
    {"echo": True, "n": 2, "seed": 3},
    {"prompt": ["abc", "de!", "f"], "n": 2, "seed": 3, "logprobs": 1, "echo": True, "prompt_logprobs": 0},
    {"prompt": [[97, 98], [99]], "stop": ["b"]},
    {"prompt": "ab!", "truncate_prompt_tokens": -1, "max_tokens": 98},
]


def places_of(logprobs):
    """Log-probabilities of a message, in the words of the JSON form."""
    return [
        (
            place.chosen.token,
            tuple(place.chosen.utf8),
            place.chosen.logprob if place.chosen.HasField("logprob") else None,
            [(one.token, one.logprob) for one in place.top],
        )
        for place in logprobs
    ]


def chat_places_of(logprobs):
    return [
        (p["token"], tuple(p["bytes"]), p["logprob"], [(one["token"], one["logprob"]) for one in p["top_logprobs"]])
        for p in (logprobs or {"content": []})["content"]
    ]


def prompt_places_of(places):
    """Each place's token and the likeliest, by id; of the first there is nothing."""
    told = [{one.token_id: (one.logprob, one.rank, one.token) for one in (p.chosen, *p.top)} for p in places]
    return [None, *told[1:]] if told else None


def prompt_body_of(body):
    return body and [
        place and {int(id): (one["logprob"], one["rank"], one["decoded_token"]) for id, one in place.items()}
        for place in body
    ]


def reason_of(message):
    which = message.stop_reason.WhichOneof("reason")
    return which and getattr(message.stop_reason, which)


def finish_of(message):
    return {glm_pb2.FINISH_REASON_STOP: "stop", glm_pb2.FINISH_REASON_LENGTH: "length"}[message.finish_reason]


def whole_choices(chunks):
    """For each choice its text, ids, places, finish and reason, put together from the chunks of a stream."""
    return [
        (
            "".join(c.text for c in mine),
            [id for c in mine for id in c.token_ids],
            [place for c in mine for place in c.logprobs],
            finish_of(mine[-1]),
            reason_of(mine[-1]),
        )
        for index in sorted({c.index for c in chunks})
        for mine in [[c for c in chunks if c.index == index]]
    ]


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("fields", [*ALIKE, *CHAT_ALIKE[:-1]])
async def test_answers_to_conversations_are_alike(http, stub, echo, fields, at_once):
    echo.at_once, echo.by_seed = at_once, True
    body = CHAT | {"return_token_ids": True, "max_tokens": 12, "seed": 0} | fields
    answer = (await http.post("/v1/chat/completions", json=body)).json()
    whole = await stub.Chat(chat_message(body))
    assert [
        (c["message"]["content"], c["token_ids"], c["finish_reason"], c["stop_reason"]) for c in answer["choices"]
    ] == [(c.message.content, list(c.token_ids), finish_of(c), reason_of(c)) for c in whole.choices]
    assert [chat_places_of(c["logprobs"]) for c in answer["choices"]] == [places_of(c.logprobs) for c in whole.choices]
    assert [c["index"] for c in answer["choices"]] == [c.index for c in whole.choices] == list(range(body.get("n", 1)))
    assert answer["prompt_token_ids"] == list(whole.prompt_token_ids)
    assert prompt_body_of(answer.get("prompt_logprobs")) == prompt_places_of(whole.prompt_logprobs)
    assert answer["usage"]["completion_tokens"] == whole.usage.completion_tokens
    ours, theirs = (
        {replace(seen, request_id="") for seen in echo.seen if seen.request_id.startswith(id)}
        for id in (answer["id"], whole.id)
    )
    assert ours == theirs


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("fields", [*ALIKE, *TEXT_ALIKE])
async def test_continuations_are_alike(http, stub, echo, fields, at_once):
    echo.at_once, echo.by_seed = at_once, True
    body = TEXT | {"return_token_ids": True, "max_tokens": 12, "seed": 0} | fields
    answer = (await http.post("/v1/completions", json=body)).json()
    chunks = [chunk async for chunk in stub.Generate(generate_message(body))]
    streamed = whole_choices(chunks)
    assert [(c["text"], c["token_ids"], c["finish_reason"], c["stop_reason"]) for c in answer["choices"]] == [
        (text, ids, finish, reason) for text, ids, _, finish, reason in streamed
    ]
    for choice, (text, _, places, _, _) in zip(answer["choices"], streamed, strict=True):
        columns = choice["logprobs"] or {"tokens": [], "token_logprobs": [], "text_offset": []}
        assert columns["tokens"] == [place.chosen.token for place in places]
        assert columns["text_offset"] == [place.text_offset for place in places]
        assert columns["token_logprobs"] == [logprob for _, _, logprob, _ in places_of(places)]
        assert all(
            text[start:].startswith(token)
            for start, token in zip(columns["text_offset"], columns["tokens"], strict=True)
            if start < len(text) and token != "<|end|>"
        )
    firsts = [next(c for c in chunks if c.index == index) for index in range(len(streamed))]
    assert [c["prompt_token_ids"] for c in answer["choices"]] == [list(c.prompt_token_ids) for c in firsts]
    assert [prompt_body_of(c.get("prompt_logprobs")) for c in answer["choices"]] == [
        prompt_places_of(c.prompt_logprobs) for c in firsts
    ]
    usage = chunks[-1].usage
    assert (
        answer["usage"]["completion_tokens"] == usage.completion_tokens == sum(len(ids) for _, ids, _, _, _ in streamed)
    )
    assert answer["usage"]["prompt_tokens"] == usage.prompt_tokens
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == usage.cached_tokens
    assert [chunk.HasField("usage") for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
async def test_usage_so_far_is_alike(http, stub, path, body):
    body = body | {"n": 2, "max_tokens": 4, "stream": True, "stream_options": {"continuous_usage_stats": True}}
    lines = (await http.post(path, json=body)).text.split("\n\n")[:-2]
    over_http = [json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"] for line in lines]
    call = stub.Generate(generate_message(body)) if "prompt" in body else stub.ChatStream(chat_message(body))
    assert over_http == [chunk.usage.completion_tokens async for chunk in call] == list(range(1, 9))


async def test_one_choice_that_fails_fails_the_request_and_ends_the_others(http, stub, echo):
    echo.error = EngineUnavailable("no engine; try again")
    body = TEXT | {"prompt": ["abc", "a~"], "n": 2}
    assert (await http_verdict(http, "/v1/completions", body))[0] == 503
    assert await generate_verdict(stub, body) == (grpc.StatusCode.UNAVAILABLE, "no engine; try again")
    assert echo.open == 0
    assert len(echo.seen) == 8
