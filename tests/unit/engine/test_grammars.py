"""Outputs match their grammars and are those of a run alone: batched, chunked, preempted, guessed ahead, re-entered."""

import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from support.checkpoints import write_tokenizer
from support.engines import drain, drain_events, mixed_requests

from glm_cluster.config import EngineConfig
from glm_cluster.engine.engine import Engine, open_engine
from glm_cluster.engine.lookup import PromptLookup
from glm_cluster.errors import InternalError, InvalidRequest
from glm_cluster.records import GenerationRequest, Grammar, SamplingParams
from glm_cluster.text.grammar.vocabulary import Vocabulary
from glm_cluster.text.grammar.workshop import Workshop
from glm_cluster.text.tokenizer import Tokenizer

END = 300
Ids = tuple[int, ...]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "size": {"type": "object", "properties": {"width": {"type": "integer", "minimum": 0, "maximum": 99}}},
        "tags": {"type": "array", "items": {"enum": ["one", "two", "three"]}, "maxItems": 3},
        "is_new": {"type": ["boolean", "null"]},
    },
    "required": ["name", "size", "tags", "is_new"],
    "additionalProperties": False,
}
SCHEMA["properties"]["size"] |= {"required": ["width"], "additionalProperties": False}  # type: ignore[index]
JSON = Grammar("json_schema", json.dumps(SCHEMA))
GRAMMARS = (
    JSON,
    replace(JSON, opens_line=True),
    Grammar("regex", "(ab{1,3}){4,9}"),
    Grammar("choice", '["yes", "no"]'),
    replace(JSON, instead='start: ("ab" | "c"){4,9} "!"\n'),
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    tokenizer = Tokenizer.from_directory(write_tokenizer(tmp_path_factory.mktemp("text")))
    return Vocabulary.of(tokenizer, stop_ids=(END,), vocab_size=301)


@pytest.fixture(scope="module")
def workshop(vocabulary: Vocabulary) -> Iterator[Workshop]:
    shop = Workshop(lambda: vocabulary)
    yield shop
    shop.close()


@pytest.fixture(scope="module")
def requests() -> list[GenerationRequest]:
    """Every grammar, greedy and sampled."""
    rng = random.Random(4)
    return [
        GenerationRequest(
            request_id=f"g{i}",
            prompt=tuple(rng.randrange(2, 300) for _ in range(rng.choice([1, 16, 40]))),
            sampling=SamplingParams(
                max_tokens=250,
                temperature=[0.0, 0.7, 1.0][i % 3],
                top_p=[None, 0.9][i % 2],
                frequency_penalty=[0.0, 0.4][i // 2 % 2],
                seed=i,
                stop_token_ids=(END,),
                grammar=GRAMMARS[i % len(GRAMMARS)],
            ),
        )
        for i in range(16)
    ]


@pytest.fixture(scope="module")
def opened(checkpoint: Callable[..., Path], workshop: Workshop) -> Callable[..., Engine]:
    return lambda **changes: open_engine(EngineConfig(model=str(checkpoint()), **changes), constrain=workshop.follow)


@pytest.fixture(scope="module")
def alone(opened: Callable[..., Engine], requests: list[GenerationRequest]) -> dict[str, Ids]:
    engine = opened(speculative_tokens=0)
    return {name: ids for request in requests for name, ids in drain(engine, [request]).items()}


def test_outputs_match(alone: dict[str, Ids], requests: list[GenerationRequest]) -> None:
    for request in requests:
        *ids, last = alone[request.request_id]
        assert last == END
        text, grammar = bytes(ids).decode(), request.sampling.grammar
        if grammar in GRAMMARS[:2]:
            assert text.startswith("\n") is grammar.opens_line
            jsonschema.validate(json.loads(text), SCHEMA)
        elif grammar == GRAMMARS[2]:
            assert re.fullmatch(grammar.source, text)
        elif grammar == GRAMMARS[3]:
            assert text in ("yes", "no")
        elif not re.fullmatch("(ab|c){4,9}!", text):
            jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(alone.values())) > len(GRAMMARS)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"speculative_tokens": 0},
        {"step_tokens": 5},
        {"step_tokens": 32, "max_model_len": 320, "kv_cache_bytes": 20 * 2 * 3 * 2 * 32 * 16 * 4},
        {"max_running": 2},
    ],
    ids=["wide", "unguessed", "chunked", "tight", "narrow"],
)
def test_outputs_are_those_of_a_run_alone(
    opened: Callable[..., Engine], requests: list[GenerationRequest], alone: dict[str, Ids], shape: dict[str, int]
) -> None:
    strangers = mixed_requests(len(requests), vocab_size=301)
    engine = opened(**shape)
    together = drain(engine, [one for pair in zip(requests, strangers, strict=True) for one in pair])
    assert {name: together[name] for name in alone} == alone
    assert engine.take_failures() == []


def test_a_guessed_ahead_output_saved_steps(opened: Callable[..., Engine], requests: list[GenerationRequest]) -> None:
    """Or the comparison above says nothing about guesses."""
    engine = opened()
    for request in requests:
        drain(engine, [request])
    assert engine.load().num_accepted > 50


@pytest.mark.parametrize("others", [0, 12])
def test_what_is_forced_costs_no_steps(
    opened: Callable[..., Engine], requests: list[GenerationRequest], alone: dict[str, Ids], others: int
) -> None:
    """Nor is there ever too much company for it, as there is for a guess."""
    fixed = json.dumps({"const": {"a long name": ["and", "all of its", "values"]}})
    one = replace(requests[0], sampling=replace(requests[0].sampling, grammar=Grammar("json_schema", fixed)))
    stream = SamplingParams(max_tokens=100, temperature=0.0)
    company = [GenerationRequest(request_id=f"{i}", prompt=(5, i), sampling=stream) for i in range(others)]
    steps = {}
    for max_drafts in (0, 3):
        events = drain_events(opened(), [*company, replace(one, max_drafts=max_drafts)])[one.request_id]
        ids = [id for event in events for id in event.tokens]
        assert json.loads(bytes(ids[:-1])) == json.loads(fixed)["const"]
        steps[max_drafts] = len(events)
    assert steps == {0: len(ids), 3: -(-len(ids) // 4)}


def test_nothing_is_drawn_after_a_stop_token_that_was_guessed(
    opened: Callable[..., Engine],
    requests: list[GenerationRequest],
    alone: dict[str, Ids],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A prompt that an answer repeats holds what came after it too, and a grammar that has ended takes no more."""
    for one in requests[:8]:
        whole = alone[one.request_id]

        def right(lookup: PromptLookup, tokens: list[int], most: int, one=one, whole=whole) -> Ids:
            done = len(tokens) - len(one.prompt)
            return (*whole, 7, 7, 7)[done : done + most]

        monkeypatch.setattr(PromptLookup, "draft", right)
        engine = opened()
        assert drain(engine, [one]) == {one.request_id: whole}
        assert engine.take_failures() == []


def test_a_finished_request_waits_for_no_grammar(
    opened: Callable[..., Engine], requests: list[GenerationRequest], workshop: Workshop
) -> None:
    grammar = Grammar("regex", "of no other test")
    sampling = replace(requests[0].sampling, grammar=grammar, max_tokens=1)
    engine = opened()
    engine.add(replace(requests[0], sampling=sampling, output=(5,)))
    assert not workshop.has(grammar)
    assert [event.finish for event in engine.step()] == ["length"]


def test_strangers_notice_nothing(opened: Callable[..., Engine], requests: list[GenerationRequest]) -> None:
    strangers = mixed_requests(8, vocab_size=301)
    plain, mixed = drain(opened(), strangers), drain(opened(), [*strangers, *requests[:8]])
    assert {name: mixed[name] for name in plain} == plain


def test_reentry_at_any_token(
    opened: Callable[..., Engine], requests: list[GenerationRequest], alone: dict[str, Ids]
) -> None:
    engine = opened()
    for request in requests[:8]:
        whole = alone[request.request_id]
        cuts = range(len(whole) + 1)
        tails = drain(engine, [replace(request, request_id=f"{k}", output=whole[:k]) for k in cuts])
        assert [whole[:k] + tails[f"{k}"] for k in cuts] == [whole] * len(cuts)


@pytest.fixture
def late_workshop(vocabulary: Vocabulary) -> Iterator[tuple[threading.Event, Workshop]]:
    """One that compiles nothing until it may."""
    may_open = threading.Event()

    def opens() -> Vocabulary:
        may_open.wait(60)
        return vocabulary

    shop = Workshop(opens)
    yield may_open, shop
    may_open.set()
    shop.close()


def test_the_others_do_not_wait_for_a_grammar(
    checkpoint: Callable[..., Path], late_workshop: tuple[threading.Event, Workshop]
) -> None:
    may_open, shop = late_workshop
    engine = open_engine(EngineConfig(model=str(checkpoint())), constrain=shop.follow)
    sampling = SamplingParams(max_tokens=8, temperature=0, stop_token_ids=(END,))
    waits = GenerationRequest(request_id="waits", prompt=(5,), sampling=replace(sampling, grammar=GRAMMARS[3]))
    engine.add(waits)
    engine.add(GenerationRequest(request_id="goes", prompt=(5,), sampling=sampling))
    seen = [event for _ in range(20) for event in engine.step()]
    assert {event.request_id for event in seen} == {"goes"}
    assert engine.load().num_waiting == 1
    may_open.set()
    assert bytes(_rest(engine)) in (b"yes", b"no")


def test_the_grammar_of_a_request_that_was_cancelled_is_given_up(
    checkpoint: Callable[..., Path], late_workshop: tuple[threading.Event, Workshop]
) -> None:
    may_open, shop = late_workshop
    engine = open_engine(EngineConfig(model=str(checkpoint())), constrain=shop.follow)
    sampling = SamplingParams(max_tokens=8, temperature=0, stop_token_ids=(END,))
    for name, grammar in (("gone", GRAMMARS[2]), ("waits", GRAMMARS[3])):
        engine.add(GenerationRequest(request_id=name, prompt=(5,), sampling=replace(sampling, grammar=grammar)))
    engine.cancel("gone", 0)
    assert (shop.has(GRAMMARS[2]), shop.has(GRAMMARS[3])) == (False, True)
    may_open.set()
    assert bytes(_rest(engine)) in (b"yes", b"no")


def _rest(engine: Engine) -> list[int]:
    """What comes until the end, without the stop token."""
    tokens: list[int] = []
    while engine.has_work:
        tokens += [token for event in engine.step() for token in event.tokens]
    return tokens[:-1]


def test_what_is_no_grammar_fails_alone(opened: Callable[..., Engine], requests: list[GenerationRequest]) -> None:
    engine, good = opened(), requests[3]
    engine.add(good)
    bad = replace(good, request_id="bad", sampling=replace(good.sampling, grammar=Grammar("regex", "(")))
    engine.add(bad)
    assert bytes(_rest(engine)) in (b"yes", b"no")
    (failure,) = engine.take_failures()
    assert failure.request_id == "bad"
    assert isinstance(failure.error, InvalidRequest)
    engine.check()


def test_what_leads_no_further_fails_alone(opened: Callable[..., Engine], requests: list[GenerationRequest]) -> None:
    """Its tokens of that step are not shown; here an output that came with it is not of its grammar."""
    engine, good = opened(), requests[3]
    engine.add(replace(good, request_id="bad", output=(1, 2, 3)))
    engine.add(good)
    assert bytes(_rest(engine)) in (b"yes", b"no")
    (failure,) = engine.take_failures()
    assert failure.request_id == "bad"
    assert isinstance(failure.error, InternalError)
    engine.check()
    assert engine.load().num_free_blocks == engine.load().num_blocks
