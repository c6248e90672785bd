"""Forms beside tools, and strict tools, in each format: what random weights write keeps to what is asked."""

import gzip
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from support.about import WellServer, server_of
from support.direct import Direct

from glm_cluster.api.desk import GrammarDesk
from glm_cluster.api.http import build_http_app
from glm_cluster.api.service import ServedModel, Service
from glm_cluster.api.window import EncodeWindow
from glm_cluster.config import EngineConfig
from glm_cluster.engine.engine import open_engine
from glm_cluster.metrics import NoMeters
from glm_cluster.records import ModelInfo
from glm_cluster.text.chat import ChatTemplate
from glm_cluster.text.grammar.vocabulary import Vocabulary
from glm_cluster.text.grammar.workshop import Workshop
from glm_cluster.text.own_templates import OwnTemplate, own_template
from glm_cluster.text.tokenizer import Tokenizer
from glm_cluster.text.tools.dialect import dialect_of

VOCAB = 151552
STOPS = (151329, 151336, 151338)
TEMPLATES: tuple[OwnTemplate, ...] = ("glm4", "glm45", "glm47")
TRIP = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["北京", "Paris"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "late": {"type": ["boolean", "null"]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
ANSWER = {
    "type": "object",
    "properties": {"says": {"enum": ["plan_trip\n{}", "<tool_call>now</tool_call>"]}, "sure": {"type": "boolean"}},
    "required": ["says", "sure"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER}}
USER = {"role": "user", "content": "去北京三天"}


def tools(*, strict: bool = False) -> list[dict[str, Any]]:
    trip = {"name": "plan_trip", "description": "安排行程", "parameters": TRIP, "strict": strict}
    return [{"type": "function", "function": trip}, {"type": "function", "function": {"name": "now"}}]


@pytest.fixture(scope="module")
def tokenizer(shared_data: Path) -> Tokenizer:
    """GLM-4's, with the control tokens of GLM-4.5 where those of 4.5 have them."""
    content = json.loads(gzip.decompress((shared_data / "tokenizer" / "tokenizer.GLM-4-0414.json.gz").read_bytes()))
    named = json.loads((shared_data / "tokenizer" / "special_tokens_glm45.json").read_text(encoding="utf-8"))
    known = {token["content"] for token in content["added_tokens"]}
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    more = [{"id": id, "content": name, **flags} for name, id in named.items() if name not in known]
    return Tokenizer({**content, "added_tokens": [*content["added_tokens"], *more]})


@pytest.fixture(scope="module")
def direct(checkpoint: Callable[..., Path], tokenizer: Tokenizer) -> Direct:
    made = checkpoint(vocab_size=VOCAB, eos_token_id=list(STOPS), pad_token_id=STOPS[0], max_position_embeddings=4096)
    workshop = Workshop(lambda: Vocabulary.of(tokenizer, stop_ids=STOPS, vocab_size=VOCAB))
    config = EngineConfig(model=str(made), device="cpu", kv_cache_bytes=64 << 20)
    unused = tokenizer.unused_ids(VOCAB)
    return Direct(open_engine(config, unused_token_ids=unused, constrain=workshop.follow))


@pytest.fixture
async def http(tokenizer: Tokenizer, direct: Direct) -> AsyncIterator[httpx.AsyncClient]:
    window, desk = EncodeWindow(tokenizer, NoMeters()), GrammarDesk(tokenizer.special_ids)

    def model(name: OwnTemplate) -> ServedModel:
        source = own_template(name)
        return ServedModel(
            info=ModelInfo(name=name, vocab_size=VOCAB, max_model_len=4096, eos_token_ids=STOPS),
            tokenizer=tokenizer,
            template=ChatTemplate(source, tokenizer.special_ids, {}),
            window=window,
            dialect=dialect_of(source, tokenizer.special_ids),
            generator=direct,
            desk=desk,
        )

    service = Service(models=[model(name) for name in TEMPLATES], meters=NoMeters())
    transport = httpx.ASGITransport(build_http_app(service, server_of(service.infos, WellServer()), NoMeters()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=120) as client:
        yield client
    window.close()
    desk.close()


async def choice(http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    (made,) = response.json()["choices"]
    return made


def flat(message: dict[str, Any]) -> tuple[str, str, list[tuple[str, str]]]:
    """Text, reasoning and calls."""
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
    return message["content"] or "", message.get("reasoning_content") or "", calls


async def streamed(http: httpx.AsyncClient, body: dict[str, Any]) -> tuple[str, str, list[tuple[str, str]]]:
    response = await http.post("/v1/chat/completions", json={**body, "stream": True})
    lines = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    deltas = [part["delta"] for line in lines for part in line["choices"]]
    names, arguments = {}, {}
    for call in (call for delta in deltas for call in delta.get("tool_calls", ())):
        names.setdefault(call["index"], call["function"].get("name"))
        arguments[call["index"]] = arguments.get(call["index"], "") + call["function"]["arguments"]
    text = "".join(delta.get("content") or "" for delta in deltas)
    thought = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    return text, thought, [(name, arguments[index]) for index, name in names.items()]


def check_calls(calls: list[tuple[str, str]]) -> None:
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), {"plan_trip": TRIP, "now": {"type": "object"}}[name])


@pytest.mark.parametrize("model", TEMPLATES)
async def test_an_answer_keeps_its_form_or_is_calls(
    http: httpx.AsyncClient, tokenizer: Tokenizer, model: OwnTemplate
) -> None:
    """Every other time the token that tells the two apart is all but ruled out, else all but sure."""
    begins = 198 if model == "glm4" else tokenizer.special_ids["<tool_call>"]
    seen = set()
    for seed in range(6):
        body = {"model": model, "messages": [USER], "tools": tools(), "response_format": FORM, "seed": seed}
        body |= {"max_tokens": 300, "parallel_tool_calls": seed % 2 == 1}
        body["logit_bias"] = {str(begins): 100 * (-1) ** seed}
        made = await choice(http, body)
        content, thought, calls = flat(made["message"])
        assert thought == ""
        if calls:
            assert content == ""
            check_calls(calls)
        else:
            jsonschema.validate(json.loads(content), ANSWER)
        assert made["finish_reason"] == ("tool_calls" if calls else "stop")
        assert await streamed(http, body) == (content, thought, calls)
        seen.add(bool(calls))
    assert seen == {True, False}


@pytest.mark.parametrize("model", TEMPLATES)
async def test_a_demanded_call_has_no_form_and_without_tools_there_are_no_calls(
    http: httpx.AsyncClient, model: OwnTemplate
) -> None:
    body = {"model": model, "messages": [USER], "tools": tools(), "response_format": FORM, "max_tokens": 300}
    body["seed"] = 0
    for demanded in ("required", {"type": "function", "function": {"name": "plan_trip"}}):
        content, _, calls = flat((await choice(http, {**body, "tool_choice": demanded}))["message"])
        assert content == ""
        assert calls
        check_calls(calls)
    content, _, calls = flat((await choice(http, {**body, "tool_choice": "none"}))["message"])
    jsonschema.validate(json.loads(content), ANSWER)
    assert calls == []


@pytest.mark.parametrize("model", TEMPLATES)
async def test_other_forms_go_beside_tools_too(http: httpx.AsyncClient, model: OwnTemplate) -> None:
    for form in ({"choice": ["now", "nowhere"]}, {"regex": "now\\n\\{[a-c]{2}"}):
        for seed in range(2):
            body = {"model": model, "messages": [USER], "tools": tools(), "structured_outputs": form, "seed": seed}
            content, thought, calls = flat((await choice(http, body))["message"])
            assert content.startswith("now") is not bool(calls)
            check_calls(calls)
            assert await streamed(http, body) == (content, thought, calls)


LIKELY = {
    **{"<tool_call>": 20, "</tool_call>": 20, "</arg_key>": 20, "</arg_value>": 20},
    **{"<think>": 22, "</think>": 13, "<|observation|>": 10},
}


@pytest.mark.parametrize(("model", "thinks"), [("glm45", True), ("glm47", True), ("glm45", False), ("glm47", False)])
async def test_calls_of_a_strict_tool_keep_its_schema_after_any_text(
    http: httpx.AsyncClient, direct: Direct, tokenizer: Tokenizer, model: OwnTemplate, thinks: bool
) -> None:
    """The tags are made likely, as random weights hardly ever choose one of 151,552 tokens."""
    called, thoughts = [], []
    for seed in range(3):
        body = {"model": model, "messages": [USER], "tools": tools(strict=True), "seed": seed, "max_tokens": 60}
        body["logit_bias"] = {tokenizer.special_ids[name]: bias for name, bias in LIKELY.items()}
        body["chat_template_kwargs"] = {"enable_thinking": thinks}
        made = await choice(http, body)
        content, thought, calls = flat(made["message"])
        check_calls([call for call in calls if call[0] == "plan_trip"])
        assert await streamed(http, body) == (content, thought, calls)
        assert direct.seen[-1].sampling.grammar is not None
        called += [name for name, _ in calls]
        thoughts.append(thought)
    assert "plan_trip" in called
    assert any(thoughts) == thinks


@pytest.mark.parametrize("model", TEMPLATES)
async def test_what_cannot_be_kept_is_refused_by_its_field(http: httpx.AsyncClient, model: OwnTemplate) -> None:
    odd = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    function = {"name": "a", "parameters": odd, "strict": True}
    bad_form = {"type": "json_schema", "json_schema": {"name": "a", "schema": odd, "strict": True}}
    bad_tools = [{"type": "function", "function": function}]
    for given, form, field in ((bad_tools, FORM, "tools"), (tools(), bad_form, "response_format")):
        body = {"model": model, "messages": [USER], "tools": given, "response_format": form}
        response = await http.post("/v1/chat/completions", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == field
    del function["strict"], bad_form["json_schema"]["strict"]
    for more in ({"tool_choice": "required"}, {"response_format": bad_form}):
        loose = {"model": model, "messages": [USER], "tools": bad_tools, "max_tokens": 5, **more}
        assert (await http.post("/v1/chat/completions", json=loose)).status_code == 200


@pytest.mark.parametrize("model", TEMPLATES)
async def test_an_answer_that_has_begun_goes_on_in_its_form(
    http: httpx.AsyncClient, tokenizer: Tokenizer, direct: Direct, model: OwnTemplate
) -> None:
    """Its reasoning is over: nothing comes between what stands there and what follows."""
    begun = [USER, {"role": "assistant", "content": "好的："}]
    body = {"model": model, "messages": begun, "continue_final_message": True, "max_tokens": 300, "seed": 3}
    made = await choice(http, body | {"response_format": FORM})
    content, thought, calls = flat(made["message"])
    assert (thought, calls) == ("", [])
    jsonschema.validate(json.loads(content), ANSWER)
    assert tokenizer.decode(direct.prompts[-1]).endswith("好的：")
