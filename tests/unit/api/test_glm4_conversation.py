"""A conversation with tools in GLM-4's format, with its own tokenizer, on a model of random weights under grammar."""

import gzip
import json
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
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
from glm_cluster.text.grammar.vocabulary import Vocabulary
from glm_cluster.text.grammar.workshop import Workshop
from glm_cluster.text.own_templates import served_template
from glm_cluster.text.tokenizer import Tokenizer

VOCAB = 151552
STOPS = (151329, 151336, 151338)
TRIP = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "class": {"enum": ["经济", "business"]},
        "stops": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["city", "days", "class"],
}
TOOLS = [
    {"type": "function", "function": {"name": "plan_trip", "description": "安排行程", "parameters": TRIP}},
    {"type": "function", "function": {"name": "now"}},
    {"type": "simple_browser"},
]


@pytest.fixture(scope="module")
def directory(checkpoint: Callable[..., Path], shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLM-4-9B-Chat, but for its size and without a template."""
    made = checkpoint(vocab_size=VOCAB, eos_token_id=list(STOPS), pad_token_id=STOPS[0], max_position_embeddings=4096)
    packed = (shared_data / "tokenizer" / "tokenizer.GLM-4-0414.json.gz").read_bytes()
    path = tmp_path_factory.mktemp("chat")
    for file in made.iterdir():
        (path / file.name).symlink_to(file)
    (path / "tokenizer.json").write_bytes(gzip.decompress(packed))
    return path


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(directory)


@pytest.fixture(scope="module")
def direct(directory: Path, tokenizer: Tokenizer) -> Direct:
    workshop = Workshop(lambda: Vocabulary.of(tokenizer, stop_ids=STOPS, vocab_size=VOCAB))
    config = EngineConfig(model=str(directory), device="cpu", kv_cache_bytes=64 << 20)
    unused = tokenizer.unused_ids(VOCAB)
    return Direct(open_engine(config, unused_token_ids=unused, constrain=workshop.follow))


@pytest.fixture
async def http(directory: Path, tokenizer: Tokenizer, direct: Direct) -> AsyncIterator[httpx.AsyncClient]:
    window, desk = EncodeWindow(tokenizer, NoMeters()), GrammarDesk(tokenizer.special_ids)
    model = ServedModel(
        info=ModelInfo(name="glm", vocab_size=VOCAB, max_model_len=4096, eos_token_ids=STOPS),
        tokenizer=tokenizer,
        template=served_template(directory, tokenizer, model_type="glm"),
        window=window,
        generator=direct,
        desk=desk,
    )
    service = Service(models=[model], meters=NoMeters())
    transport = httpx.ASGITransport(build_http_app(service, server_of(service.infos, WellServer()), NoMeters()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        yield client
    window.close()
    desk.close()


async def message(http: httpx.AsyncClient, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    body = {"model": "glm", "messages": messages, "tools": TOOLS, "max_tokens": 400, **fields}
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    return choice["message"]


async def test_calls_are_made_and_answered(http: httpx.AsyncClient, direct: Direct, tokenizer: Tokenizer) -> None:
    """Each turn's prompt begins with the one before and what was generated, so the prefix cache holds it."""
    said: list[dict[str, Any]] = [{"role": "user", "content": "去北京三天"}]
    num_others = len(direct.prompts)
    for seed in range(4):
        name = ("plan_trip", "now")[seed % 2]
        choice = {"type": "function", "function": {"name": name}}
        made = await message(http, said, tool_choice=choice, seed=seed, parallel_tool_calls=False)
        (call,) = made["tool_calls"]
        arguments = json.loads(call["function"]["arguments"])
        jsonschema.validate(arguments, TRIP if name == "plan_trip" else {"type": "object", "maxProperties": 0})
        said += [made, {"role": "tool", "tool_call_id": call["id"], "content": f"好 {seed}"}]
    decoded = [tokenizer.decode(prompt) for prompt in direct.prompts[num_others:]]
    for before, after in pairwise(decoded):
        assert after.startswith(before)
    third = said[5]["tool_calls"][0]["function"]["arguments"]
    assert decoded[-1].endswith(f"now\n{{}}\n好 1plan_trip\n{third}\n好 2")
    assert "## simple_browser" in decoded[0]
    assert tokenizer.special_ids["<|observation|>"] in direct.prompts[-1]


@pytest.mark.parametrize("seed", range(2))
async def test_whichever_tool_is_called_the_call_is_one(http: httpx.AsyncClient, seed: int) -> None:
    made = await message(http, [{"role": "user", "content": "hi"}], tool_choice="required", seed=seed, max_tokens=2000)
    schemas = {"plan_trip": TRIP, "now": {"type": "object"}, "simple_browser": {"required": ["call"]}}
    for call in made["tool_calls"]:
        jsonschema.validate(json.loads(call["function"]["arguments"]), schemas[call["function"]["name"]])
