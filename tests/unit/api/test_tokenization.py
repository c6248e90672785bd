"""Text to ids and back: the same over both wires, and what cannot be done refused in the same words."""

import json
from urllib.parse import quote

import grpc
import pytest

from glm_cluster.api.proto import glm_pb2

BEGIN, EOS = 257, 256
USER = {"role": "user", "content": "ab"}
ANSWER = {"role": "assistant", "content": "cd"}
TOOL = {"type": "function", "function": {"name": "look"}}
CHAT_IDS = list(b"[user]ab[a]")


def message_of(body):
    """The TokenizeRequest that says what a JSON body says."""
    roles = {"system": 1, "user": 2, "assistant": 3}
    rest = {name: value for name, value in body.items() if name not in ("messages", "chat_template_kwargs", "tools")}
    if variables := body.get("chat_template_kwargs"):
        rest["chat_template_kwargs"] = {name: glm_pb2.TemplateValue(text=value) for name, value in variables.items()}
    if tools := body.get("tools"):
        rest["tools"] = [{"function": tool["function"]} for tool in tools]
    turns = [{"role": roles[m["role"]], "content": m.get("content")} for m in body.get("messages", [])]
    return glm_pb2.TokenizeRequest(messages=turns, **rest)


@pytest.mark.parametrize(
    ("fields", "ids"),
    [
        ({"prompt": "ab"}, [BEGIN, *b"ab", EOS]),
        ({"prompt": ""}, [BEGIN, EOS]),
        ({"prompt": "", "add_special_tokens": False}, []),
        ({"prompt": "<|end|>", "add_special_tokens": False}, list(b"<|end|>")),
        ({"prompt": "ab", "add_special_tokens": True}, [BEGIN, *b"ab", EOS]),
        ({"messages": [USER]}, CHAT_IDS),
        ({"messages": [USER], "add_generation_prompt": False}, list(b"[user]ab")),
        ({"messages": [USER], "add_special_tokens": True}, [BEGIN, *CHAT_IDS, EOS]),
        ({"messages": [USER, ANSWER], "continue_final_message": True}, list(b"[user]ab[assistant]cd")),
    ],
)
async def test_tokens_are_the_models_on_both_wires(http, stub, fields, ids):
    body = {"model": "framing", **fields}
    expected = {"count": len(ids), "max_model_len": 100, "tokens": ids, "token_strs": None}
    for path in ("/tokenize", "/v1/tokenize"):
        assert (await http.post(path, json=body)).json() == expected
    answer = await stub.Tokenize(message_of(body))
    assert (list(answer.tokens), answer.count, answer.max_model_len) == (ids, len(ids), 100)
    assert list(answer.token_strs) == []


async def test_tokens_as_the_vocabulary_spells_them(http, stub):
    body = {"model": "mapper", "prompt": 'a "é', "return_token_strs": True}
    strings = ["<|begin|>", "a", "Ġ", '"', "Ã", "©", "<|end|>"]
    assert (await http.post("/tokenize", json=body)).json()["token_strs"] == strings
    assert list((await stub.Tokenize(message_of(body))).token_strs) == strings


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [USER, ANSWER, USER]},
        {"messages": [USER, ANSWER], "continue_final_message": True},
    ],
)
async def test_a_conversation_has_the_tokens_that_its_answer_is_made_from(http, stub, fields):
    conversation = {"model": "tiny", **fields}
    tokens = (await http.post("/tokenize", json=conversation)).json()["tokens"]
    answer = await http.post("/v1/chat/completions", json={**conversation, "max_tokens": 1, "return_token_ids": True})
    assert answer.json()["prompt_token_ids"] == tokens
    assert list((await stub.Tokenize(message_of(conversation))).tokens) == tokens


async def test_tools_are_in_the_tokens_on_both_wires(http, stub):
    body = {"model": "tiny", "messages": [USER], "tools": [TOOL]}
    tokens = (await http.post("/tokenize", json=body)).json()["tokens"]
    assert b"look" in bytes(tokens)
    assert list((await stub.Tokenize(message_of(body))).tokens) == tokens


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([], ""),
        (list(b"ab"), "ab"),
        ([BEGIN, *"é".encode(), EOS], "<|begin|>é<|end|>"),
        ([0xC3], "\ufffd"),
        ([259], ""),  # a row without a token
    ],
)
async def test_ids_are_text_again_on_both_wires(http, stub, ids, text):
    for path in ("/detokenize", "/v1/detokenize"):
        assert (await http.post(path, json={"model": "tiny", "tokens": ids})).json() == {"prompt": text}
    assert (await stub.Detokenize(glm_pb2.DetokenizeRequest(model="tiny", tokens=ids))).prompt == text


async def test_there_and_back(http):
    text = 'né\n"😀" <|end|>'
    for model in ("tiny", "tagger"):
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        tokens = (await http.post("/tokenize", json=body)).json()["tokens"]
        assert (await http.post("/detokenize", json={"model": model, "tokens": tokens})).json() == {"prompt": text}


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"model": "huge", "prompt": "a"}, 404, "NOT_FOUND", "no model 'huge'"),
        ({"model": "tiny"}, 400, "INVALID_ARGUMENT", "give either prompt or messages"),
        ({"model": "tiny", "prompt": "a", "messages": [USER]}, 400, "INVALID_ARGUMENT", "give either"),
        (
            {"model": "tiny", "prompt": "a", "add_generation_prompt": True},
            400,
            "INVALID_ARGUMENT",
            "goes with messages",
        ),
        ({"model": "tiny", "prompt": "a", "tools": [TOOL]}, 400, "INVALID_ARGUMENT", "tools goes with messages"),
        ({"model": "tiny", "prompt": "a", "continue_final_message": True}, 400, "INVALID_ARGUMENT", "goes with"),
        ({"model": "tiny", "messages": [USER], "tools": [TOOL] * 200}, 400, "INVALID_ARGUMENT", "at most"),
        (
            {"model": "tiny", "messages": [USER], "chat_template_kwargs": {"messages": "a"}},
            400,
            "INVALID_ARGUMENT",
            "a",
        ),
        ({"model": "mapper", "messages": [USER]}, 400, "INVALID_ARGUMENT", "no chat template"),
        ({"model": "tiny", "messages": [{"role": "user"}]}, 400, "INVALID_ARGUMENT", "some content"),
        ({"prompt": "a"}, 400, "INVALID_ARGUMENT", "model: Field required"),
        ({"model": "tiny", "messages": [USER] * 4097}, 400, "INVALID_ARGUMENT", "at most 4096"),
    ],
)
async def test_what_cannot_be_tokenised_is_refused_alike(http, stub, body, status, code, words):
    answer = await http.post("/tokenize", json=body)
    assert answer.status_code == status
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Tokenize(message_of(body))
    assert caught.value.code().name == code
    assert words in caught.value.details()
    assert caught.value.details() == answer.json()["error"]["message"]


@pytest.mark.parametrize("fields", [{"tokens": [260]}, {"tokens": [2**62]}, {"tokens": [-1]}, {"model": "huge"}])
async def test_what_cannot_be_detokenised_is_refused_alike(http, stub, fields):
    body = {"model": "tiny", "tokens": [1], **fields}
    answer = await http.post("/detokenize", json=body)
    assert answer.status_code in (400, 404)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Detokenize(glm_pb2.DetokenizeRequest(**body))
    assert caught.value.details() == answer.json()["error"]["message"]


@pytest.mark.parametrize("fields", [{"tokens": None}, {"tokens": "a"}, {"tokens": [1.5]}, {"tokens": [True]}, {"x": 1}])
async def test_bad_shapes_are_refused(http, fields):
    answer = await http.post("/detokenize", content=json.dumps({"model": "tiny", "tokens": [1], **fields}))
    assert answer.status_code == 400
    assert next(iter(fields)) in answer.json()["error"]["param"]


async def test_a_long_text_comes_whole(http, stub):
    """Longer than any piece that a reply is made of."""
    text = "abc" * 20_000
    body = {"model": "tiny", "prompt": text, "return_token_strs": True, "add_special_tokens": False}
    reply = (await http.post("/tokenize", json=body)).json()
    assert reply["tokens"] == list(text.encode())
    assert "".join(reply["token_strs"]) == text
    answer = await stub.Tokenize(message_of(body))
    assert (list(answer.tokens), list(answer.token_strs)) == (reply["tokens"], reply["token_strs"])
    back = await http.post("/detokenize", json={"model": "tiny", "tokens": reply["tokens"]})
    assert back.json() == {"prompt": text}


@pytest.mark.parametrize("name", ["tiny", "mapper", "single"])
async def test_one_model_is_as_in_the_list(http, stub, name):
    listed = {model["id"]: model for model in (await http.get("/v1/models")).json()["data"]}
    assert (await http.get(f"/v1/models/{name}")).json() == listed[name]
    (message,) = [m for m in (await stub.ListModels(glm_pb2.ListModelsRequest())).models if m.id == name]
    assert await stub.GetModel(glm_pb2.GetModelRequest(model=name)) == message


@pytest.mark.parametrize("name", ["huge", "a/b", "ä b", "%2F"])
async def test_another_model_is_not_found_alike(http, stub, name):
    answer = await http.get(f"/v1/models/{quote(name, safe='')}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetModel(glm_pb2.GetModelRequest(model=name))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == answer.json()["error"]["message"]
    assert repr(name) in caught.value.details()
