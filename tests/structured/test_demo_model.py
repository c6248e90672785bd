"""Whatever the demo model writes under a real schema ends and keeps it: hundreds of schemas, greedy, in one batch.

A model of 135 million parameters rambles: left alone it rarely ends a list or a string. Where a schema bounds these (as
a careful client's would, see `bounds`), the grammar alone brings every answer to its end. No bound keeps a schema that
recurs from nesting ever deeper: there the client asks for a frequency penalty too.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.forms import PARTS, Form, forms

from glm_cluster.config import EngineConfig
from glm_cluster.deploy.grammars import open_workshop
from glm_cluster.engine.engine import Engine, open_engine
from glm_cluster.model.config import GlmConfig
from glm_cluster.records import GenerationRequest, Grammar, SamplingParams
from glm_cluster.text.chat import ChatTemplate
from glm_cluster.text.grammar.matcher import Mask
from glm_cluster.text.grammar.workshop import Following, Workshop
from glm_cluster.text.tokenizer import Tokenizer

pytestmark = pytest.mark.demo
MOST_TOKENS = 1900


@dataclass
class Writer:
    """The demo model, asked for JSON."""

    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate
    stop_ids: tuple[int, ...]
    masks: Counter[int]
    tokens: dict[str, list[int]] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)

    def ask(self, form: Form) -> None:
        (ids,) = self.tokenizer.encode_batch([self.template.render(form.question)])
        sampling = SamplingParams(
            max_tokens=MOST_TOKENS,
            temperature=0.0,
            frequency_penalty=form.frequency_penalty,
            stop_token_ids=self.stop_ids,
            grammar=Grammar("json_schema", json.dumps(form.bounded)),
        )
        self.engine.add(GenerationRequest(request_id=form.name, prompt=ids, sampling=sampling))

    def write(self) -> None:
        """Go on until all is written."""
        while self.engine.has_work:
            for event in self.engine.step():
                self.tokens.setdefault(event.request_id, []).extend(event.tokens)
                if event.finish is not None:
                    self.ends[event.request_id] = event.finish

    def text(self, form: Form) -> str:
        return self.tokenizer.decode(self.tokens[form.name][:-1])


class TimedFollowing(Following):
    """A constraint that writes down what each of its masks takes, in microseconds of CPU, with the tokens before it."""

    def __init__(self, workshop: Workshop, grammar: Grammar, masks: "Counter[int]") -> None:
        super().__init__(workshop, workshop.want(grammar))
        self._masks = masks
        self._taking_ns = 0

    def take(self, tokens: Sequence[int]) -> None:
        start = time.thread_time_ns()
        super().take(tokens)
        self._taking_ns += time.thread_time_ns() - start

    def allowed(self) -> Mask | None:
        start = time.thread_time_ns()
        mask = super().allowed()
        self._masks[(self._taking_ns + time.thread_time_ns() - start) // 1000] += 1
        self._taking_ns = 0
        return mask


@pytest.fixture(scope="module")
def writer(demo_directory: Path) -> Iterator[Writer]:
    settings = {"model": str(demo_directory), "device": "cpu", "max_model_len": 2048, "kv_cache_bytes": 2 << 30}
    config = EngineConfig.from_mapping(settings)
    workshop = open_workshop(config)
    assert workshop is not None
    masks: Counter[int] = Counter()
    engine = open_engine(config, constrain=lambda grammar: TimedFollowing(workshop, grammar, masks))
    tokenizer = Tokenizer.from_directory(demo_directory)
    template = ChatTemplate.from_directory(demo_directory, tokenizer)
    yield Writer(engine, tokenizer, template, GlmConfig.from_directory(demo_directory).eos_token_ids, masks)
    workshop.close()


@pytest.mark.parametrize("part", range(PARTS))
def test_every_answer_ends_and_keeps_its_schema(
    writer: Writer, part: int, record_figures: Callable[[dict[str, Any]], None]
) -> None:
    asked = forms(part)
    assert asked
    writer.masks.clear()
    for form in asked:
        writer.ask(form)
    writer.write()
    assert writer.engine.take_failures() == []
    assert [form.name for form in asked if writer.ends[form.name] != "stop"] == []
    for form in asked:
        form.check(writer.text(form))
    num_tokens = sum(len(writer.tokens[form.name]) for form in asked)
    record_figures({"answers": len(asked), "tokens": num_tokens, "masks": writer.masks})
