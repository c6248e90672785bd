"""Tools and reasoning over both wires: what a model is told, what it must write, and how its calls come back."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from glm_cluster.api import messages
from glm_cluster.api.desk import GrammarDesk
from glm_cluster.api.grpc import GlmGrpc
from glm_cluster.api.http import build_http_app
from glm_cluster.api.proto import glm_pb2, glm_pb2_grpc
from glm_cluster.api.server import Server
from glm_cluster.api.service import ServedModel, Service
from glm_cluster.api.window import EncodeWindow
from glm_cluster.metrics import NoMeters
from glm_cluster.records import GenerationRequest, ModelInfo, TokenEvent
from glm_cluster.text.chat import ChatTemplate
from glm_cluster.text.own_templates import own_template
from glm_cluster.text.tokenizer import Tokenizer
from glm_cluster.text.tools.dialect import dialect_of

EOS, TURN = 256, 258
ADDED = ("<|assistant|>", "<|observation|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<think>", "</think>")
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": WEATHER}}
NOW = {"type": "function", "function": {"name": "now"}}
USER = {"role": "user", "content": "weather?"}
CALL = 'get_weather\n{"city": "Paris"}'
ARGUMENTS = '{"city": "Paris"}'
MADE = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
TEMPLATES = {"glm4": "glm4", "0414": "glm4-0414", "glm45": "glm45"}
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"

# One that always thinks.
ALWAYS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)


@dataclass
class Script:
    """An engine that says `text`, one token a step; its turns are control tokens."""

    text: str = ""
    length: int | None = None  # stop there, as if there were no room for more
    seen: list[GenerationRequest] = field(default_factory=list)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        self.seen.append(request)
        turns = self.text.split("<|assistant|>")
        said = [token for turn in turns for token in (*turn.encode(), TURN)]
        tokens = [*said[:-1], EOS][: self.length]
        for index, token in enumerate(tokens):
            finish = None if index + 1 < len(tokens) else "length" if self.length else "stop"
            yield TokenEvent(request.request_id, request.attempt, index, (token,), finish)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture(scope="module")
def tokenizer(byte_checkpoint: Path) -> Tokenizer:
    content = json.loads((byte_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": TURN + index, "content": name, **flags} for index, name in enumerate(ADDED)]
    return Tokenizer({**content, "added_tokens": [*content["added_tokens"], *added], "post_processor": None})


@pytest.fixture
async def service(tokenizer: Tokenizer, script: Script) -> AsyncIterator[Service]:
    """A model of each dialect, and one whose calls are not read."""
    window = EncodeWindow(tokenizer, NoMeters())
    desk = GrammarDesk(tokenizer.special_ids)

    def model(name: str, source: str, **settings: Any) -> ServedModel:
        return ServedModel(
            info=ModelInfo(name=name, vocab_size=300, max_model_len=8192, eos_token_ids=(EOS,)),
            tokenizer=tokenizer,
            template=ChatTemplate(source, tokenizer.special_ids, {}),
            window=window,
            dialect=dialect_of(source, tokenizer.special_ids, **settings),
            generator=script,
            desk=desk,
        )

    models = [model(name, own_template(source)) for name, source in TEMPLATES.items()]  # type: ignore[arg-type]
    models += [model("plain", PLAIN), model("off", PLAIN, tool_parser="none"), model("always", ALWAYS)]
    yield Service(models=models, meters=NoMeters())
    window.close()
    desk.close()


@pytest.fixture
async def http(service: Service, server: Server) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build_http_app(service, server, NoMeters()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
async def stub(service: Service, server: Server, served: Any) -> AsyncIterator[glm_pb2_grpc.GlmStub]:
    async with served(GlmGrpc(service, server, NoMeters())) as channel:
        yield glm_pb2_grpc.GlmStub(channel)


def chat(model: str = "glm4", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [USER], "tools": [TOOL, NOW], **fields}


async def whole(http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice


async def streamed(http: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of all chunks."""
    response = await http.post("/v1/chat/completions", json={**body, "stream": True})
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]


def gathered(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that OpenAI's clients make of a stream, without ids."""
    text, thought, calls = "", "", {}
    for delta in (choice["delta"] for choice in choices):
        text += delta.get("content") or ""
        thought += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls", ()):
            if call["index"] not in calls:
                assert call["id"].startswith("call_")
                assert call["type"] == "function"
                calls[call["index"]] = {"name": call["function"]["name"], "arguments": ""}
            calls[call["index"]]["arguments"] += call["function"]["arguments"]
    return {"content": text, "thought": thought, "calls": [calls[index] for index in sorted(calls)]}


def flat(message: dict[str, Any]) -> dict[str, Any]:
    """A whole message in the same form."""
    return {
        "content": message["content"] or "",
        "thought": message.get("reasoning_content", ""),
        "calls": [call["function"] for call in message.get("tool_calls", ())],
    }


PARIS = {"name": "get_weather", "arguments": ARGUMENTS}
TAGGED = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>"
OUTPUTS = [
    ("glm4", CALL, "", "", [PARIS]),
    ("glm4", "\nHello\n", "Hello\n", "", []),
    ("glm4", "\nLet me see.<|assistant|>" + CALL, "Let me see.", "", [PARIS]),
    ("glm4", CALL + "<|assistant|>now\n{}", "", "", [PARIS, {"name": "now", "arguments": "{}"}]),
    ("glm4", "other\n{}", "other\n{}", "", []),
    ("0414", CALL, "", "", [PARIS]),
    ("plain", CALL, "", "", [PARIS]),
    ("glm45", "\n<think>hm</think>\nI look.\n" + TAGGED, "I look.", "hm", [PARIS]),
    ("glm45", "\n<think>\nhm\n</think>\n\nHi", "Hi", "hm", []),
    ("off", CALL, CALL, "", []),
]


@pytest.mark.parametrize(("model", "text", "content", "thought", "calls"), OUTPUTS)
async def test_http_tells_calls_text_and_reasoning_apart(
    http: httpx.AsyncClient, script: Script, model: str, text: str, content: str, thought: str, calls: list[Any]
) -> None:
    script.text = text
    choice = await whole(http, chat(model))
    expected = {"content": content, "thought": thought, "calls": calls}
    assert flat(choice["message"]) == expected
    assert choice["finish_reason"] == ("tool_calls" if calls else "stop")
    assert choice["message"]["content"] == (content or None if calls else content)
    chunks = await streamed(http, chat(model))
    assert gathered(chunks) == expected
    assert [chunk["finish_reason"] for chunk in chunks if chunk["finish_reason"]] == [choice["finish_reason"]]


@pytest.mark.parametrize(("model", "text", "content", "thought", "calls"), OUTPUTS)
async def test_grpc_tells_the_same(
    stub: glm_pb2_grpc.GlmStub, script: Script, model: str, text: str, content: str, thought: str, calls: list[Any]
) -> None:
    script.text = text
    function = glm_pb2.FunctionTool(name="get_weather", parameters=json.dumps(WEATHER))
    tools = [glm_pb2.Tool(function=function), glm_pb2.Tool(function=glm_pb2.FunctionTool(name="now"))]
    turns = [glm_pb2.ChatMessage(role=glm_pb2.ROLE_USER, content="weather?")]
    request = glm_pb2.ChatRequest(model=model, messages=turns, tools=tools)
    (choice,) = (await stub.Chat(request)).choices
    message = choice.message
    assert (message.content, message.reasoning_content) == (content, thought)
    assert [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls] == calls
    ended = glm_pb2.FINISH_REASON_TOOL_CALLS if calls else glm_pb2.FINISH_REASON_STOP
    assert choice.finish_reason == ended
    chunks = [chunk async for chunk in stub.ChatStream(request)]
    assert "".join(chunk.content for chunk in chunks) == content
    assert "".join(chunk.reasoning_content for chunk in chunks) == thought
    pieces = [piece for chunk in chunks for piece in chunk.tool_calls]
    assert [piece.name for piece in pieces if piece.HasField("id")] == [call["name"] for call in calls]
    for index, call in enumerate(calls):
        assert "".join(piece.arguments for piece in pieces if piece.index == index) == call["arguments"]
    assert chunks[-1].finish_reason == ended


async def test_all_tools_pass_through(http: httpx.AsyncClient, script: Script) -> None:
    script.text = "python\nprint(1)\n"
    body = chat(tools=[{"type": "python"}, {"type": "simple_browser"}, {"type": "cogview"}])
    message = (await whole(http, body))["message"]
    assert flat(message)["calls"] == [{"name": "python", "arguments": '{"code": "print(1)\\n"}'}]
    assert gathered(await streamed(http, body)) == flat(message)
    assert "## simple_browser" in bytes(id for id in script.seen[0].prompt if id < 256).decode()


async def test_a_call_that_was_cut_off_is_text(http: httpx.AsyncClient, script: Script) -> None:
    script.text, script.length = CALL, len(CALL) - 1
    choice = await whole(http, chat())
    assert choice["message"]["content"] == CALL[:-1]
    assert choice["finish_reason"] == "length"


async def test_of_parallel_calls_only_the_first_is_told_where_one_is_wanted(
    http: httpx.AsyncClient, script: Script
) -> None:
    script.text = CALL + "<|assistant|>now\n{}"
    body = chat(parallel_tool_calls=False)
    assert flat((await whole(http, body))["message"])["calls"] == [PARIS]
    assert gathered(await streamed(http, body))["calls"] == [PARIS]


async def test_with_choice_none_the_model_is_told_of_no_tools(http: httpx.AsyncClient, script: Script) -> None:
    script.text = CALL
    assert (await whole(http, chat(tool_choice="none")))["message"]["content"] == CALL
    without = chat()
    del without["tools"]
    await whole(http, without)
    assert script.seen[0].prompt == script.seen[1].prompt


@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("model", ["glm4", "0414", "plain", "glm45"])
async def test_a_demanded_call_is_held_to_a_grammar(
    http: httpx.AsyncClient, script: Script, model: str, choice: Any
) -> None:
    script.text = TAGGED if model == "glm45" else CALL
    answered = await whole(http, chat(model, tool_choice=choice))
    assert flat(answered["message"])["calls"] == [PARIS]
    assert answered["finish_reason"] == "tool_calls"
    grammar = script.seen[0].sampling.grammar
    assert grammar is not None
    assert grammar.kind == "lark"
    assert ("now" in grammar.source) == (choice == "required")


STRICT = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER, "strict": True}}


@pytest.mark.parametrize(("model", "is_held"), [("glm4", True), ("0414", True), ("plain", True), ("glm45", False)])
async def test_strict_calls_are_held_to_their_schemas_where_the_model_does_not_think(
    http: httpx.AsyncClient, script: Script, model: str, is_held: bool
) -> None:
    script.text = "Hello"
    assert (await whole(http, chat(model, tools=[STRICT, NOW])))["message"]["content"] == "Hello"
    assert (script.seen[0].sampling.grammar is not None) == is_held


async def test_a_strict_schema_that_cannot_be_kept_is_refused(http: httpx.AsyncClient) -> None:
    odd = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    function = {"name": "a", "parameters": odd, "strict": True}
    for choice in ("auto", "required"):
        body = chat(tools=[{"type": "function", "function": function}], tool_choice=choice)
        response = await http.post("/v1/chat/completions", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "tools"


@pytest.mark.parametrize("model", ["glm4", "glm45"])
async def test_one_odd_schema_among_many_is_no_matter_unless_it_is_strict(
    http: httpx.AsyncClient, script: Script, model: str
) -> None:
    """As servers of MCP send them: nulls for what is absent, patterns that look around, references to nowhere."""
    script.text = TAGGED if model == "glm45" else CALL
    functions = [{"name": f"f{index}", "parameters": WEATHER} for index in range(10)]
    nulls = {"type": None, "properties": None, "required": None, "$schema": "https://json-schema.org/draft-07/schema"}
    odd = {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}, "b": {"pattern": "^(?!a)", "type": "string"}}}
    functions += [{"name": "nulls", "parameters": nulls}, {"name": "odd", "parameters": odd}]
    offered = [{"type": "function", "function": one} for one in functions]
    body = chat(model, tools=[TOOL, *offered], tool_choice="required")
    accepted = await http.post("/v1/chat/completions", json=body)
    assert accepted.status_code == 200, accepted.text
    functions[-1]["strict"] = True
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools"
    assert "'odd'" in response.json()["error"]["message"]


@pytest.mark.parametrize(("model", "text"), [("glm4", CALL), ("glm45", TAGGED)])
async def test_demanded_arguments_come_as_they_are_written(
    http: httpx.AsyncClient, script: Script, model: str, text: str
) -> None:
    script.text = text
    pieces = [
        piece
        for chunk in await streamed(http, chat(model, tool_choice="required"))
        for piece in chunk["delta"].get("tool_calls", ())
    ]
    assert len(pieces) > len("Paris")
    assert "".join(piece["function"]["arguments"] for piece in pieces) == ARGUMENTS


async def test_so_do_those_of_strict_tools(http: httpx.AsyncClient, script: Script) -> None:
    script.text = "\nI look.<|assistant|>" + CALL
    chunks = await streamed(http, chat(tools=[STRICT]))
    assert gathered(chunks) == {"content": "I look.", "thought": "", "calls": [PARIS]}
    pieces = [piece for chunk in chunks for piece in chunk["delta"].get("tool_calls", ())]
    assert len(pieces) > len(ARGUMENTS) / 2


JSON_OBJECT = {"response_format": {"type": "json_object"}}
SAYS_A_CALL = json.dumps({"a": TAGGED + CALL})


@pytest.mark.parametrize("model", ["glm4", "0414", "plain", "glm45"])
async def test_beside_tools_an_answer_keeps_its_form_or_is_calls(
    http: httpx.AsyncClient, script: Script, model: str
) -> None:
    opens = model in ("glm4", "0414")
    call = TAGGED if model == "glm45" else CALL
    for text, content, calls in (("\n" * opens + SAYS_A_CALL, SAYS_A_CALL, []), (call, "", [PARIS])):
        script.text = text
        body = chat(model, **JSON_OBJECT)
        choice = await whole(http, body)
        expected = {"content": content, "thought": "", "calls": calls}
        assert flat(choice["message"]) == gathered(await streamed(http, body)) == expected
        assert choice["finish_reason"] == ("tool_calls" if calls else "stop")
    grammar = script.seen[-1].sampling.grammar
    assert grammar is not None
    assert (grammar.kind, grammar.opens_line, "get_weather" in grammar.instead) == ("json", opens, True)


async def test_a_form_stands_alone_where_no_call_can_be_read_and_falls_away_where_one_is_demanded(
    http: httpx.AsyncClient, script: Script
) -> None:
    script.text = "{}"
    await whole(http, chat("off", **JSON_OBJECT))
    await whole(http, chat("plain", tool_choice="none", **JSON_OBJECT))
    script.text = CALL
    await whole(http, chat("plain", tool_choice="required", **JSON_OBJECT))
    kinds = [(one.sampling.grammar.kind, one.sampling.grammar.instead) for one in script.seen if one.sampling.grammar]
    assert kinds == [("json", ""), ("json", ""), ("lark", "")]


async def test_a_model_that_thinks_calls_without(http: httpx.AsyncClient, script: Script) -> None:
    script.text = TAGGED
    await whole(http, chat("glm45", tool_choice="required"))
    await whole(http, chat("glm45"))
    think = [TURN + ADDED.index("<think>"), TURN + ADDED.index("</think>")]
    assert script.seen[0].prompt == (*script.seen[1].prompt, 10, *think, 10)
    assert script.seen[1].sampling.grammar is None


async def test_a_template_that_can_be_told_is_told_of_an_effort(http: httpx.AsyncClient, script: Script) -> None:
    script.text = "Hi"
    told: list[dict[str, Any]] = [
        {},
        {"reasoning_effort": "medium"},
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ]
    for fields in told:
        await whole(http, chat("glm45", **fields))
    usual, medium, none, off = (request.prompt for request in script.seen)
    assert usual == medium != none == off


async def test_one_that_cannot_be_told_has_its_reasoning_closed(http: httpx.AsyncClient, script: Script) -> None:
    script.text = "Hi"
    for effort, place in (("medium", "thought"), ("none", "content")):
        body = {"model": "always", "messages": [USER], "reasoning_effort": effort}
        message = flat((await whole(http, body))["message"])
        assert [name for name, said in message.items() if said] == [place]
    thinking, answering = (request.prompt for request in script.seen)
    closed = TURN + ADDED.index("</think>")
    assert answering == (*thinking, closed, *b"\n")
    await whole(http, {"model": "plain", "messages": [USER], "reasoning_effort": "none"})
    await whole(http, {"model": "plain", "messages": [USER]})
    assert script.seen[-1].prompt == script.seen[-2].prompt


async def test_an_answer_that_has_begun_goes_on_whatever_the_effort(http: httpx.AsyncClient, script: Script) -> None:
    script.text = "Hi"
    turns = [USER, {"role": "assistant", "content": "so "}]
    body = {"model": "always", "messages": turns, "continue_final_message": True}
    for fields in ({}, {"reasoning_effort": "none"}):
        await whole(http, {**body, **fields})
    assert script.seen[0].prompt == script.seen[1].prompt
    for fields in ({}, {"reasoning_effort": "none"}):
        await whole(http, {"model": "always", "messages": [USER], "add_generation_prompt": False, **fields})
    assert script.seen[2].prompt == script.seen[3].prompt


async def test_tokens_are_those_of_the_same_conversation_asked(
    http: httpx.AsyncClient, stub: glm_pb2_grpc.GlmStub, script: Script
) -> None:
    for model in ("always", "glm45"):
        body = {"model": model, "messages": [USER], "reasoning_effort": "none"}
        await whole(http, body)
        ids = (await http.post("/tokenize", json=body)).json()["tokens"]
        turns = [glm_pb2.ChatMessage(role=glm_pb2.ROLE_USER, content=USER["content"])]
        effort = glm_pb2.REASONING_EFFORT_NONE
        over_grpc = await stub.Tokenize(glm_pb2.TokenizeRequest(model=model, messages=turns, reasoning_effort=effort))
        assert tuple(ids) == tuple(over_grpc.tokens) == script.seen[-1].prompt


async def test_results_go_back_to_the_model(http: httpx.AsyncClient, script: Script) -> None:
    script.text = "\n22"
    said = [USER, {"role": "assistant", "content": None, "refusal": None, "tool_calls": [MADE]}]
    await whole(http, chat(messages=[*said, {"role": "tool", "tool_call_id": "call_1", "content": "22C"}]))
    text = bytes(id for id in script.seen[0].prompt if id < 256).decode()
    assert text.endswith(f"weather?get_weather\n{ARGUMENTS}\n22C")


BAD = [
    ({"tool_choice": "required", "tools": []}, "tool_choice: there are no tools"),
    ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice: 'x' is none of the tools"),
    ({"tools": [TOOL, TOOL]}, "'get_weather' stands twice"),
    ({"tools": [TOOL] * 129}, "tools: Input should have at most 128 items"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    ({"tools": [{"type": "function"}]}, "tools.0: function"),
    ({"tools": [{"type": "python", "function": {"name": "a"}}]}, "tools.0: function"),
    ({"tools": [{"type": "retrieval"}]}, "tools.0.type"),
    ({"tool_choice": "required", "ignore_eos": True}, "tool_choice cannot be kept together with ignore_eos"),
    ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "x"}]}, "'x' is that of no call"),
    ({"messages": [USER, {"role": "developer"}]}, "messages.1: a developer message"),
    ({"messages": [{"role": "user", "content": "a", "tool_calls": [MADE]}]}, "messages.0: tool_calls"),
]
JSON_ONLY = [
    ({"tool_choice": "any"}, "tool_choice: Input should be"),
    ({"tool_choice": 1}, 'tool_choice: Input should be "none"'),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]}, "object"),
    ({"tools": [{"type": "function", "function": {"name": "a", "x": 1}}]}, "tools.0.function.x"),
    (
        {"messages": [USER, {"role": "assistant", "tool_calls": [{**MADE, "type": "x"}]}]},
        "messages.1.tool_calls.0.type",
    ),
]


@pytest.mark.parametrize(("fields", "words"), [*BAD, *JSON_ONLY])
async def test_what_makes_no_sense_is_refused(http: httpx.AsyncClient, fields: dict[str, Any], words: str) -> None:
    response = await http.post("/v1/chat/completions", json=chat(**fields))
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


async def test_a_schema_is_neither_deep_nor_long(http: httpx.AsyncClient) -> None:
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(40):
        deep = {"properties": {"a": deep}}
    long = {"type": "object", "description": "x" * (64 << 10)}
    for parameters, words in ((deep, "nested at most 32 deep"), (long, "at most 65536 bytes")):
        tool = {"type": "function", "function": {"name": "a", "parameters": parameters}}
        response = await http.post("/v1/chat/completions", json=chat(tools=[tool]))
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]


async def test_a_schema_has_finite_numbers(http: httpx.AsyncClient) -> None:
    """1e999 is JSON, becomes infinity, and was shown to the model as `Infinity`."""
    tool = {"type": "function", "function": {"name": "a", "parameters": {"maximum": 5}}}
    content = json.dumps(chat(tools=[tool])).replace(": 5", ": 1e999")
    response = await http.post("/v1/chat/completions", content=content)
    assert response.status_code == 400
    assert "tools.0.function.parameters: Input should have finite numbers only" in response.json()["error"]["message"]


async def test_a_call_of_a_model_that_cannot_be_read_cannot_be_demanded(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json=chat("off", tool_choice="required"))
    assert response.status_code == 400
    assert "tool_parser: none" in response.json()["error"]["message"]


def message_of(body: dict[str, Any]) -> glm_pb2.ChatRequest:
    """The ChatRequest that says what a JSON body says."""
    roles = {"user": glm_pb2.ROLE_USER, "assistant": glm_pb2.ROLE_ASSISTANT, "tool": glm_pb2.ROLE_TOOL}
    turns = []
    for said in body["messages"]:
        calls = [glm_pb2.ToolCall(id=call["id"], **call["function"]) for call in said.get("tool_calls", ())]
        rest = {name: value for name, value in said.items() if name not in ("role", "tool_calls")}
        turns.append(glm_pb2.ChatMessage(role=roles[said["role"]], tool_calls=calls, **rest))
    tools = []
    for tool in body["tools"]:
        function = dict(tool.get("function", {}))
        if "parameters" in function:
            function["parameters"] = json.dumps(function["parameters"])
        built_in = {"python": glm_pb2.BUILT_IN_TOOL_PYTHON}.get(tool["type"])
        tools.append(glm_pb2.Tool(built_in=built_in) if built_in else glm_pb2.Tool(function=function))
    choice = body.get("tool_choice", "auto")
    mode = {"auto": glm_pb2.TOOL_CHOICE_MODE_AUTO, "required": glm_pb2.TOOL_CHOICE_MODE_REQUIRED}
    chosen = {"mode": mode[choice]} if isinstance(choice, str) else {"function": choice["function"]["name"]}
    sampling = glm_pb2.Sampling(ignore_eos=True) if "ignore_eos" in body else None
    tool_choice = glm_pb2.ToolChoice(**chosen)
    return glm_pb2.ChatRequest(
        model=body["model"], messages=turns, tools=tools, tool_choice=tool_choice, sampling=sampling
    )


SAME = [case for case in BAD if "function" not in case[1] and "type" not in case[1] and "messages.1" not in case[1]]


@pytest.mark.parametrize(("fields", "words"), SAME)
async def test_grpc_refuses_the_same(
    stub: glm_pb2_grpc.GlmStub, http: httpx.AsyncClient, fields: dict[str, Any], words: str
) -> None:
    body = chat(**fields)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Chat(message_of(body))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    response = await http.post("/v1/chat/completions", json=body)
    assert caught.value.details() == response.json()["error"]["message"]


@pytest.mark.parametrize(
    "source",
    ["{", "x" * (65 << 10), '{"type": "object", "type": "object"}', '{"a": NaN}', '{"a": 1e999}', "[" * 60000],
)
async def test_grpc_refuses_a_schema_that_is_none(stub: glm_pb2_grpc.GlmStub, source: str) -> None:
    request = message_of(chat())
    request.tools[0].function.parameters = source
    with pytest.raises(grpc.aio.AioRpcError, match=r"tools\.0\.function\.parameters") as caught:
        await stub.Chat(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_grpc_refuses_many_calls_before_it_looks_into_them(
    stub: glm_pb2_grpc.GlmStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two million empty calls, in a message of 4 MB, took a gigabyte."""
    request = message_of(chat(messages=[USER]))
    request.messages.add(role=glm_pb2.ROLE_ASSISTANT, tool_calls=[glm_pb2.ToolCall()] * 129)
    monkeypatch.setattr(messages, "call_mapping", None)
    with pytest.raises(grpc.aio.AioRpcError, match=r"messages\.1\.tool_calls: Input should have at most 128"):
        await stub.Chat(request)


async def test_grpc_demands_a_call(stub: glm_pb2_grpc.GlmStub, script: Script) -> None:
    script.text = CALL
    (choice,) = (await stub.Chat(message_of(chat(tool_choice=NAMED)))).choices
    assert [call.arguments for call in choice.message.tool_calls] == [ARGUMENTS]
    assert script.seen[0].sampling.grammar is not None
