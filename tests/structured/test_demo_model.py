"""Whatever the demo model writes under a real schema keeps it: hundreds of schemas, greedy and sampled, in one batch.

A model of 135 million parameters rambles: left alone it rarely ends a list or a string, so the schemas are bounded.
Every output that ended has to keep its schema, and most have to end: some need more tokens than there are.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.schemas import PACKAGES, bounded, real_schemas

from glm_cluster.config import EngineConfig
from glm_cluster.deploy.grammars import open_workshop
from glm_cluster.engine.engine import Engine, open_engine
from glm_cluster.model.config import GlmConfig
from glm_cluster.records import GenerationRequest, Grammar, SamplingParams
from glm_cluster.text.chat import ChatTemplate
from glm_cluster.text.grammar.limits import SOURCE_BYTES
from glm_cluster.text.tokenizer import Tokenizer

pytestmark = pytest.mark.demo
MOST_TOKENS = 1500
Schema = dict[str, Any]


@dataclass
class Writer:
    """The demo model, asked for JSON."""

    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate
    stop_ids: tuple[int, ...]
    ends: dict[str, str] = field(default_factory=dict)

    def ask(self, name: str, schema: Schema, temperature: float) -> None:
        question = f"Write a short JSON object of the type {name.rpartition('.')[2]}."
        rendered = self.template.render([{"role": "user", "content": question}])
        sampling = SamplingParams(
            max_tokens=MOST_TOKENS,
            temperature=temperature,
            seed=7,
            stop_token_ids=self.stop_ids,
            grammar=Grammar("json_schema", json.dumps(schema)),
        )
        (ids,) = self.tokenizer.encode_batch([rendered])
        self.engine.add(GenerationRequest(request_id=f"{name}@{temperature}", prompt=ids, sampling=sampling))

    def answers(self) -> dict[str, str]:
        """The text of each that ended by itself."""
        tokens: dict[str, list[int]] = {}
        while self.engine.has_work:
            for event in self.engine.step():
                tokens.setdefault(event.request_id, []).extend(event.tokens)
                if event.finish is not None:
                    self.ends[event.request_id] = event.finish
        return {name: self.tokenizer.decode(ids[:-1]) for name, ids in tokens.items() if self.ends[name] == "stop"}


@pytest.fixture(scope="module")
def writer(demo_directory: Path) -> Iterator[Writer]:
    settings = {"model": str(demo_directory), "device": "cpu", "max_model_len": 2048, "kv_cache_bytes": 2 << 30}
    config = EngineConfig.from_mapping(settings)
    workshop = open_workshop(config)
    assert workshop is not None
    tokenizer = Tokenizer.from_directory(demo_directory)
    template = ChatTemplate.from_directory(demo_directory, tokenizer)
    stop_ids = GlmConfig.from_directory(demo_directory).eos_token_ids
    yield Writer(open_engine(config, constrain=workshop.follow), tokenizer, template, stop_ids)
    workshop.close()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_answer_keeps_its_schema(writer: Writer, package: str) -> None:
    schemas = {n: bounded(s) for n, s in real_schemas().items() if n.startswith(f"{package}.")}
    fitting = {name: schema for name, schema in schemas.items() if len(json.dumps(schema)) <= SOURCE_BYTES}
    asked = {(name, t): schema for name, schema in fitting.items() for t in (0.0, 0.8)}
    for (name, temperature), schema in asked.items():
        writer.ask(name, schema, temperature)
    answers = writer.answers()
    assert writer.engine.take_failures() == []
    for (name, temperature), schema in asked.items():
        if (text := answers.get(f"{name}@{temperature}")) is not None:
            jsonschema.validate(json.loads(text), schema)
    assert {writer.ends[f"{name}@{temperature}"] for name, temperature in asked} <= {"stop", "length"}
    assert len(answers) >= 0.8 * len(asked)
