"""What only HTTP has: events, statuses, bodies, clients that leave."""

import asyncio
import json
import re
import socket

import httpx
import openai
import pytest
import uvicorn

from glm_cluster.api import exchange
from glm_cluster.api.access import Access
from glm_cluster.api.http import build_http_app
from glm_cluster.config import Limits
from glm_cluster.errors import EngineUnavailable, Overloaded

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "abc"}]}
TEXT = {"model": "tiny", "prompt": "abc!"}
ROUTES = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]


def events(body):
    """The decoded events of a stream, which must end in [DONE]."""
    *lines, done, rest = body.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def test_a_chat_answer_has_openais_shape(http):
    response = await http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 7})
    body = response.json()
    assert body.pop("id").startswith("chatcmpl-")
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "object": "chat.completion",
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "]a[cba]"},
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": 12,
            "completion_tokens": 7,
            "total_tokens": 19,
            "prompt_tokens_details": {"cached_tokens": 6},
        },
    }


async def test_a_chat_stream_has_openais_shape(http):
    body = CHAT | {"max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    response = await http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-cache", "no")
    chunks = events(response.text)
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in chunks} == {
        (chunks[0]["id"], "chat.completion.chunk", "tiny")
    }
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": {"role": "assistant", "content": "]"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "a"}, "logprobs": None, "finish_reason": None}],
        [
            {
                "index": 0,
                "delta": {"content": "["},
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ],
        [],
    ]
    assert [chunk["usage"] and chunk["usage"]["completion_tokens"] for chunk in chunks] == [None, None, None, 3]


async def test_usage_is_streamed_only_when_asked_for(http):
    chunks = events((await http.post("/v1/completions", json=TEXT | {"stream": True})).text)
    assert not any("usage" in chunk for chunk in chunks)


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_streaming_and_not_give_the_same(http, path, body):
    body = body | {"return_token_ids": True, "max_tokens": 30}
    whole = (await http.post(path, json=body)).json()
    chunks = events((await http.post(path, json=body | {"stream": True})).text)
    pieces = [chunk["choices"][0] for chunk in chunks]
    text = "".join(piece["delta"]["content"] if "delta" in piece else piece["text"] for piece in pieces)
    choice = whole["choices"][0]
    assert text == (choice["message"]["content"] if "message" in choice else choice["text"])
    assert [id for piece in pieces for id in piece["token_ids"]] == choice["token_ids"]
    assert pieces[-1]["finish_reason"] == choice["finish_reason"]
    of_prompt = [reply if "chat" in path else reply["choices"][0] for reply in (whole, chunks[0])]
    assert of_prompt[0]["prompt_token_ids"] == of_prompt[1]["prompt_token_ids"]


async def test_quotes_newlines_and_wide_characters_survive_an_event(http):
    text = '\n"\\\u2028漢😀\0'
    prompt = list(reversed(text.encode()))
    body = {"model": "tiny", "prompt": prompt, "max_tokens": len(prompt), "stream": True}
    chunks = events((await http.post("/v1/completions", json=body)).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text


UNSUPPORTED = {
    "guided_json": {},
    "suffix": "x",
    "store": True,
    "chat_template": "x",
}


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_unsupported_fields_are_all_named(http, path, body):
    response = await http.post(path, json=body | UNSUPPORTED)
    error = response.json()["error"]
    assert response.status_code == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert all(name in error["message"] for name in UNSUPPORTED), error["message"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [{"role": "function", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "a", "tool_call_id": "x"}]}, "messages.0: tool_call_id"),
        ({"messages": [{"role": "user", "content": "a", "name": "x" * 257}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": []}]}, "a user message"),
        ({"messages": [{"role": "user", "content": None}]}, "a user message"),
        ({"messages": "hi"}, "messages: "),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "differ"),
        ({"max_tokens": "3"}, "max_tokens"),
        ({"max_tokens": 3.5}, "max_tokens"),
        ({"temperature": True}, "temperature"),
        ({"seed": 2**63}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream: true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"model": None}, "model"),
    ],
)
async def test_bad_bodies_are_refused(http, fields, words):
    response = await http.post("/v1/chat/completions", content=json.dumps(CHAT | fields))
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


async def test_null_is_not_given(http, echo):
    fields = dict.fromkeys(("temperature", "max_tokens", "stream", "stream_options", "stop_token_ids", "seed", "top_p"))
    assert (await http.post("/v1/completions", json=TEXT | fields)).status_code == 200
    assert echo.seen[0].sampling.temperature == 1.0
    assert (await http.post("/v1/completions", json=TEXT | {"tools": None})).status_code == 400
    assert (await http.post("/v1/completions", json=TEXT | {"prompt": None})).status_code == 400


async def test_half_a_surrogate_pair_becomes_the_replacement_character(http, echo):
    """JSON can spell what UTF-8 cannot; it must reach the tokeniser as something it can take."""
    response = await http.post("/v1/completions", content=rb'{"model": "tiny", "prompt": "\ud800!"}')
    assert response.status_code == 200
    assert bytes(echo.seen[0].prompt).decode() == "\ufffd!"


async def test_both_names_of_the_limit_may_agree(http):
    body = CHAT | {"max_tokens": 2, "max_completion_tokens": 2}
    assert (await http.post("/v1/chat/completions", json=body)).json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'{"model": "tiny", "prompt": "a", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "a", "temperature": -Infinity}',
        b'{"model": "tiny", "prompt": "a", "prompt": "b"}',
        b'{"model": "tiny", "prompt": "\xff"}',
        b'{"model": "tiny", "prompt": ' + b"[" * 100_000,
        b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    ],
)
async def test_what_is_not_json_is_refused(http, echo, body):
    response = await http.post("/v1/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert echo.seen == []


async def test_a_million_faults_are_refused_quickly_and_briefly(http):
    response = await asyncio.wait_for(http.post("/v1/completions", json=TEXT | {"prompt": [-1] * 1_000_000}), 10)
    assert response.status_code == 400
    assert len(response.text) < 1000


async def test_a_body_too_large_is_refused(http):
    response = await http.post("/v1/completions", content=b" " * (Limits().max_body_bytes + 1))
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


async def test_a_body_that_does_not_come_is_not_waited_for(service, server, tally, monkeypatch):
    monkeypatch.setattr(exchange, "BODY_S", 0.01)
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
    sent = []

    async def send(message):
        sent.append(message)

    await build_http_app(service, server, tally)(scope, asyncio.Event().wait, send)
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]["code"] == "body_too_slow"


UPLOADING = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}


@pytest.fixture
async def crowded(service, server, tally):
    """The application where one request at a time is taken."""
    access = Access(meters=tally, limits=Limits(max_concurrent_requests=1))
    return build_http_app(service, server, tally, access)


async def test_a_body_on_its_way_has_a_place_already(crowded, tally):
    """Uploads, each of megabytes and of a minute, counted nowhere."""
    coming: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    first, second = [], []

    async def send_first(message):
        first.append(message)

    async def send_second(message):
        second.append(message)

    uploading = asyncio.create_task(crowded(UPLOADING, coming.get, send_first))
    coming.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
    while not coming.empty():
        await asyncio.sleep(0)
    await asyncio.wait_for(crowded(UPLOADING, asyncio.Event().wait, send_second), 5)
    assert second[0]["status"] == 429
    coming.put_nowait({"type": "http.disconnect"})
    await asyncio.wait_for(uploading, 5)
    assert first == []
    statuses = [tags["status"] for name, _, tags in tally.counted if name == "glm_requests_total"]
    assert statuses == ["overloaded", "cancelled"]


async def test_a_place_is_free_again_however_the_body_fails(crowded, monkeypatch):
    monkeypatch.setattr(exchange, "BODY_S", 0.01)
    sent = []

    async def send(message):
        sent.append(message)

    for _ in range(2):
        await crowded(UPLOADING, asyncio.Event().wait, send)
    assert [message["status"] for message in sent if "status" in message] == [408, 408]


async def test_unknown_routes_and_wrong_methods_have_openais_shape(http):
    for response, status in ((await http.get("/v2"), 404), (await http.get("/v1/completions"), 405)):
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_an_unknown_route_is_told_of_all_there_are(http):
    message = (await http.get("/v1/embedding")).json()["error"]["message"]
    routes = re.findall(r"(GET|POST) (/[^, ]+)", message)
    assert len(routes) == 18
    for method, path in routes:
        answer = await http.request(method, path.replace("{model:path}", "tiny"), content=b"{}")
        assert answer.status_code == (200 if method == "GET" else 400)


async def test_health_follows_the_engines_and_readiness_their_steps(http, state):
    for path, switch in (("/health", "is_alive"), ("/ready", "is_ready")):
        assert (await http.get(path)).json() == {"status": "ok"}
        setattr(state, switch, False)
        answer = await http.get(path)
        assert (answer.status_code, answer.json()) == (503, {"status": "not ready"})
        setattr(state, switch, True)


async def test_models_are_listed(http):
    body = (await http.get("/v1/models")).json()
    assert body["object"] == "list"
    assert {model["object"] for model in body["data"]} == {"model"}
    assert [(model["id"], model["task"], model["max_model_len"], model.get("labels")) for model in body["data"]] == [
        ("tiny", "generate", 100, None),
        ("single", "classify", 50, ["a", "b", "c"]),
        ("multi", "classify", 50, ["a", "b", "c"]),
        ("value", "classify", 50, ["a"]),
        ("values", "classify", 50, ["a", "b", "c"]),
        ("tagger", "classify-tokens", 50, ["a", "b", "c"]),
        ("multi-tagger", "classify-tokens", 50, ["a", "b", "c"]),
        ("mapper", "embed", 50, None),
        ("framing", "generate", 100, None),
    ]


async def test_an_overloaded_cluster_says_when_to_come_back(http, echo, monkeypatch):
    async def refuse(request):
        raise Overloaded("full; try again")
        yield

    monkeypatch.setattr(echo, "generate", refuse)
    response = await http.post("/v1/completions", json=TEXT | {"stream": True})
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")


@pytest.mark.parametrize("error", [EngineUnavailable("gone; try again"), ZeroDivisionError("secret")])
async def test_an_error_after_the_first_event_is_the_last_event(http, echo, error):
    echo.error = error
    response = await http.post("/v1/completions", json={"model": "tiny", "prompt": "a~", "stream": True})
    *_, last, rest = response.text.split("\n\n")
    assert rest == ""
    assert response.status_code == 200
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert echo.open == 0


@pytest.fixture
async def url(service, server, tally):
    """The application on a real server and a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        build_http_app(service, server, tally), log_level="warning", lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve(sockets=[listener]))
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await serving
    listener.close()


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_is_cancelled_down_to_the_engine(url, echo, tally, stream):
    echo.pause_s = 0.05
    async with httpx.AsyncClient(base_url=url) as client:
        sending = asyncio.create_task(client.post("/v1/completions", json=TEXT | {"prompt": "abc", "stream": stream}))
        await until(lambda: echo.open == 1)
        sending.cancel()
        await asyncio.wait([sending])
        await until(lambda: echo.open == 0)
    assert echo.closed_early == 1
    await until(lambda: any(tags.get("status") == "cancelled" for _, _, tags in tally.counted))


ENCODING_ROUTES = [
    ("/v1/embeddings", {"model": "mapper", "input": ["a", "b"]}),
    ("/v1/classify", {"model": "single", "input": ["a", "b"]}),
    ("/v1/classify_tokens", {"model": "tagger", "input": ["a", "b"]}),
]


@pytest.mark.parametrize(("path", "body"), ENCODING_ROUTES)
async def test_a_client_that_leaves_takes_all_its_inputs_with_it(url, counter, tally, path, body):
    counter.hold = asyncio.Event()
    async with httpx.AsyncClient(base_url=url) as client:
        sending = asyncio.create_task(client.post(path, json=body))
        await until(lambda: counter.open == 2)
        sending.cancel()
        await asyncio.wait([sending])
        await until(lambda: counter.open == 0)
    assert counter.cancelled == 2
    await until(lambda: any(tags.get("status") == "cancelled" for _, _, tags in tally.counted))


async def test_every_event_leaves_before_the_next_is_made(url, echo, monkeypatch):
    """The first token above all: nothing waits for company."""
    seen = asyncio.Semaphore(0)
    generate = echo.generate

    async def when_seen(request):
        async for event in generate(request):
            yield event
            await asyncio.wait_for(seen.acquire(), 5)

    monkeypatch.setattr(echo, "generate", when_seen)
    arrivals = 0
    async with (
        httpx.AsyncClient(base_url=url) as client,
        client.stream("POST", "/v1/completions", json=TEXT | {"max_tokens": 4, "stream": True}) as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                arrivals += 1
                seen.release()
    assert arrivals == 4


async def test_the_official_client_understands_us(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id async for model in client.models.list()][:2] == ["tiny", "single"]
        messages = [{"role": "user", "content": "hello!"}]
        answer = await client.chat.completions.create(model="tiny", messages=messages, max_tokens=20)
        stream = await client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == answer.choices[0].message.content == "]a[!olleh]resu["
        assert answer.choices[0].finish_reason == "stop"
        assert chunks[-1].usage == answer.usage
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="tiny", messages=messages, n=200)
        assert caught.value.param == "n"
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="huge", prompt="a")


async def test_the_official_client_reads_our_embeddings(url, counter):
    """It asks for base64 unless told otherwise, and decodes it."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        coded = await client.embeddings.create(model="mapper", input=["aab", "c"])
        plain = await client.embeddings.create(model="mapper", input=["aab", "c"], encoding_format="float")
        assert [item.index for item in coded.data] == [0, 1]
        assert coded.data[0].embedding == pytest.approx([2 / 5**0.5, 1 / 5**0.5, 0])
        assert [item.embedding for item in coded.data] == [item.embedding for item in plain.data]
        assert (coded.usage.prompt_tokens, coded.usage.total_tokens) == (8, 8)
        openai.types.CreateEmbeddingResponse.model_validate(plain.to_dict(), strict=True)
        pooled = await client.embeddings.create(
            model="mapper", input=[[97], [97, 98]], extra_body={"pooling": "mean", "normalize": False}
        )
        assert [item.embedding for item in pooled.data] == [[1, 0, 0], [1, 0.5, 0]]
        assert await client.embeddings.create(model="mapper", input="a", user="me")
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="mapper", input="a", dimensions=2)
        assert caught.value.param == "dimensions"


async def test_log_probabilities_of_a_chat_have_openais_shape(http):
    body = CHAT | {"messages": [{"role": "user", "content": "é"}], "max_tokens": 5, "logprobs": True, "top_logprobs": 4}
    choice = (await http.post("/v1/chat/completions", json=body)).json()["choices"][0]
    assert choice["message"]["content"] == "]a[\ufffd\ufffd"
    assert choice["logprobs"]["content"][3] == {
        "token": "\ufffd",
        "logprob": -0.25,
        "bytes": [0xA9],
        "top_logprobs": [
            {"token": "\ufffd", "logprob": -0.25, "bytes": [0xA9]},
            {"token": "x", "logprob": -1.5, "bytes": [120]},
            {"token": "<|end|>", "logprob": -3.0, "bytes": [*b"<|end|>"]},
            {"token": "\ufffd", "logprob": -9999.0, "bytes": [200]},
        ],
    }
    chunks = events((await http.post("/v1/chat/completions", json=body | {"stream": True})).text)
    assert [place for chunk in chunks for place in chunk["choices"][0]["logprobs"]["content"]] == choice["logprobs"][
        "content"
    ]


async def test_log_probabilities_of_a_completion_have_openais_shape(http):
    body = TEXT | {"prompt": "ab", "max_tokens": 2, "logprobs": 2, "echo": True}
    choice = (await http.post("/v1/completions", json=body)).json()["choices"][0]
    assert choice["text"] == "abba"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "b", "a"],
        "token_logprobs": [None, -0.25, -0.25, -0.25],
        "top_logprobs": [None, {"b": -0.25, "x": -1.5}, {"b": -0.25, "x": -1.5}, {"a": -0.25, "x": -1.5}],
        "text_offset": [0, 1, 2, 3],
    }


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_log_probabilities_of_prompts_have_vllms_shape(http, path, body):
    body = body | {"prompt_logprobs": 2, "max_tokens": 1, "truncate_prompt_tokens": 2}
    last = "!" if "prompt" in body else "]"
    expected = [
        None,
        {
            str(ord(last)): {"logprob": -0.25, "rank": 1, "decoded_token": last},
            "120": {"logprob": -1.5, "rank": 2, "decoded_token": "x"},
        },
    ]
    for stream in (False, True):
        response = await http.post(path, json=body | {"stream": stream})
        reply = events(response.text)[0] if stream else response.json()
        assert (reply if "chat" in path else reply["choices"][0])["prompt_logprobs"] == expected


async def test_every_chunk_says_which_choice_it_is_of(http):
    body = CHAT | {"n": 2, "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events((await http.post("/v1/chat/completions", json=body)).text)
    assert (last["choices"], last["usage"]["completion_tokens"], last["usage"]["prompt_tokens"]) == ([], 4, 12)
    assert [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"][0]["index"] == 1] == [
        {"role": "assistant", "content": "]"},
        {"content": "a"},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks].count("length") == 2
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_a_stop_string_that_ended_a_choice_is_told(http):
    body = CHAT | {"stop": "cb", "stream": True}
    chunks = events((await http.post("/v1/chat/completions", json=body)).text)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "]a["
    assert {key: chunks[-1]["choices"][0][key] for key in ("finish_reason", "stop_reason")} == {
        "finish_reason": "stop",
        "stop_reason": "cb",
    }


async def test_the_official_client_reads_choices_and_log_probabilities(url, echo):
    echo.by_seed = True
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        messages = [{"role": "user", "content": "hello!"}]
        chat = await client.chat.completions.create(
            model="tiny",
            messages=messages,
            max_tokens=5,
            n=2,
            seed=1,
            logprobs=True,
            top_logprobs=2,
            stop=["zz"],
            logit_bias={"5": 1},
            presence_penalty=0.5,
            user="me",
        )
        assert [choice.index for choice in chat.choices] == [0, 1]
        assert [len(choice.logprobs.content) for choice in chat.choices] == [5, 5]
        assert chat.choices[0].logprobs.content[0].top_logprobs[1].token == "x"
        text = await client.completions.create(model="tiny", prompt=["ab", "cd"], max_tokens=2, echo=True, logprobs=1)
        assert [choice.text[:2] for choice in text.choices] == ["ab", "cd"]
        assert text.choices[1].logprobs.tokens[:2] == ["c", "d"]
        assert text.choices[1].logprobs.token_logprobs == [None, *[-0.25] * 3]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("off_loop", [False, True])
async def test_much_to_tell_is_told_the_same_off_the_loop(http, monkeypatch, stream, off_loop):
    """Tens of thousands of likelihoods take the encoder a tenth of a second in one call."""
    if off_loop:
        monkeypatch.setattr("glm_cluster.api.window.LOOP_BYTES", 0)
        for module in ("http", "replies"):
            monkeypatch.setattr(f"glm_cluster.api.{module}.LOOP_BYTES", 0)
    body = TEXT | {"logprobs": 2, "prompt_logprobs": 2, "max_tokens": 2, "stream": stream}
    text = (await http.post("/v1/completions", json=body)).text
    first = events(text)[0] if stream else json.loads(text)
    assert [place and len(place) for place in first["choices"][0]["prompt_logprobs"]] == [None, 2, 2, 2]
