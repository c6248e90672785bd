"""What a grammar lets come, token by token, on a vocabulary of bytes and one merge."""

import json
import random
import re
from collections.abc import Sequence

import jsonschema
import llguidance
import numpy as np
import pytest
from support.tiny_text import tokenizer_json

from glm_cluster.errors import InternalError, InvalidRequest
from glm_cluster.records import Grammar
from glm_cluster.text.grammar import limits
from glm_cluster.text.grammar.matcher import Mask, Matcher
from glm_cluster.text.grammar.vocabulary import Vocabulary
from glm_cluster.text.tokenizer import Tokenizer

STOPS = (257, 260)
ASSISTANT = 258
TOKENIZER = Tokenizer(tokenizer_json())
VOCABULARY = Vocabulary.of(TOKENIZER, stop_ids=STOPS, vocab_size=300)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["hi", "hip", "日本"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
GRAMMARS = {
    "json_schema": Grammar("json_schema", json.dumps(PERSON)),
    "on the next line": Grammar("json_schema", json.dumps(PERSON), opens_line=True),
    "regex": Grammar("regex", "[a-c]{2,4}\n(hi|\\d{3}|/\\w)"),
    "choice": Grammar("choice", json.dumps(["hi", "high", "日本 語", 'say "hi"\n', "a\\b", "(x|y)*"])),
    "lark": Grammar("lark", 'start: "(" start? ")" | NAME\nNAME: /h[ij]{1,3}/\n'),
    "lark with a schema": Grammar("lark", f'start: "call\\n" %json {json.dumps(PERSON)}\n'),
    "one or the other": Grammar(
        "json_schema", json.dumps(PERSON), opens_line=True, instead='start: "hi\\n" <|assistant|>\n'
    ),
    "lark with a control token": Grammar("lark", 'start: "a" <|assistant|> "b"{1,2}\n'),
}


def ids_of(mask: Mask) -> list[int]:
    return [int(id) for id in np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))]


def after(matcher: Matcher, output: Sequence[int]) -> Mask:
    """What may follow an output of which the matcher has had the beginning."""
    matcher.take(output[matcher.num_taken :])
    return matcher.allowed()


def walk(start: Matcher, seed: int, most: int = 200) -> list[int]:
    """A random output, up to and with its stop token."""
    rng, matcher, output = random.Random(seed), start.fork(), []
    while not output or output[-1] not in STOPS:
        assert len(output) < most
        output.append(rng.choice(ids_of(after(matcher, output))))
    return output


def text_of(output: Sequence[int]) -> str:
    assert output[-1] in STOPS
    return TOKENIZER.decode(output[:-1])


@pytest.fixture(scope="module", params=GRAMMARS)
def grammar(request: pytest.FixtureRequest) -> Grammar:
    return GRAMMARS[request.param]


@pytest.mark.parametrize("seed", range(5))
def test_an_output_can_be_taken_up_anywhere(grammar: Grammar, seed: int) -> None:
    """The mask after a replay of any beginning is the mask that came when the tokens came one by one."""
    start = Matcher.compile(grammar, VOCABULARY)
    output, stepwise = walk(start, seed), start.fork()
    for length in range(len(output)):
        mask = after(stepwise, output[:length])
        np.testing.assert_array_equal(after(Matcher.compile(grammar, VOCABULARY), output[:length]), mask)
        np.testing.assert_array_equal(after(start.fork(), output[:length]), mask)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_forced_is_all_that_may_come_and_asking_changes_nothing(grammar: Grammar, seed: int) -> None:
    start = Matcher.compile(grammar, VOCABULARY)
    output, asked, unasked = walk(start, seed), start.fork(), start.fork()
    for length in range(len(output)):
        after(asked, output[:length])
        forced = asked.forced()
        assert forced == output[length : length + len(forced)]
        np.testing.assert_array_equal(asked.allowed(), after(unasked, output[:length]))
        assert not forced or ids_of(unasked.allowed()) == forced[:1]


def test_keys_and_what_stands_between_values_are_forced() -> None:
    matcher, forced = Matcher.compile(GRAMMARS["json_schema"], VOCABULARY), []
    for text in ("", '{"name": "', 'hi"', ', "age": 7'):
        matcher.take(TOKENIZER.encode_batch([text])[0])
        forced.append(TOKENIZER.decode(matcher.forced()))
    assert forced == ['{"name": "', "", ', "age": ', ""]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["json_schema", "on the next line"])
def test_a_schema_is_kept(name: str, seed: int) -> None:
    text = text_of(walk(Matcher.compile(GRAMMARS[name], VOCABULARY), seed))
    assert text.startswith("\n") is GRAMMARS[name].opens_line
    jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize("seed", range(20))
def test_other_kinds_are_kept(seed: int) -> None:
    texts = {
        name: text_of(walk(Matcher.compile(GRAMMARS[name], VOCABULARY), seed)) for name in ("regex", "choice", "lark")
    }
    assert re.fullmatch(r"[a-c]{2,4}\n(hi|[0-9]{3}|/.)", texts["regex"])
    assert texts["choice"] in json.loads(GRAMMARS["choice"].source)
    assert re.fullmatch(r"(\(*)(h[ij]{1,3})?(\)*)", texts["lark"])
    assert texts["lark"].count("(") == texts["lark"].count(")")


def test_one_of_two_is_kept() -> None:
    start = Matcher.compile(GRAMMARS["one or the other"], VOCABULARY)
    outputs = [walk(start, seed) for seed in range(20)]
    others = [output for output in outputs if ASSISTANT in output]
    assert 0 < len(others) < len(outputs)
    assert {(TOKENIZER.decode(output[:-2]), output[-2]) for output in others} == {("hi\n", ASSISTANT)}
    for text in (text_of(output) for output in outputs if output not in others):
        assert text.startswith("\n")
        jsonschema.validate(json.loads(text), PERSON)


def test_what_may_come_instead_is_looked_over_too() -> None:
    for wrong in ("start: (", "start: missing"):
        with pytest.raises(InvalidRequest):
            Matcher.compile(Grammar("regex", "a", instead=wrong), VOCABULARY)


def test_every_choice_can_come() -> None:
    choices = json.loads(GRAMMARS["choice"].source)
    for choice in choices:
        (ids,) = TOKENIZER.encode_batch([choice])
        mask = after(Matcher.compile(GRAMMARS["choice"], VOCABULARY), ids)
        assert set(STOPS) <= set(ids_of(mask))


def test_an_object_of_any_kind_nests() -> None:
    text = '{"a": [1, {"b": "hi"}], "c": {}}'
    (ids,) = TOKENIZER.encode_batch([text])
    assert ids_of(after(Matcher.compile(Grammar("json", ""), VOCABULARY), ids)) == [*STOPS]
    assert ids_of(Matcher.compile(Grammar("json", ""), VOCABULARY).allowed()) == [ord("{")]


def test_only_a_stop_token_follows_what_is_complete() -> None:
    (ids,) = TOKENIZER.encode_batch(["ab"])
    assert ids_of(after(Matcher.compile(Grammar("regex", "ab"), VOCABULARY), ids)) == [*STOPS]


def test_a_control_token_comes_only_where_a_grammar_names_it() -> None:
    output = walk(Matcher.compile(GRAMMARS["lark with a control token"], VOCABULARY), 0)
    assert output[:2] == [ord("a"), ASSISTANT]
    anything = ids_of(Matcher.compile(Grammar("regex", "(?s).*"), VOCABULARY).allowed())
    assert {257, 258, 259, 260} & set(anything) == set(STOPS)


def test_ids_without_a_token_never_come() -> None:
    mask = Matcher.compile(Grammar("regex", "(?s).*"), VOCABULARY).allowed()
    assert len(mask) == 10
    assert max(ids_of(mask)) < TOKENIZER.vocab_size


PAIR = {"type": "array", "items": [{"enum": [1]}, {"enum": ["b"]}], "minItems": 2, "maxItems": 2}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("draft", ["draft-04", "draft-06", "draft-07", "draft/2019-09"])
@pytest.mark.parametrize("end", ["", "#"])
def test_a_dialect_is_known_by_either_scheme(scheme: str, draft: str, end: str) -> None:
    """Many name https://json-schema.org/draft-07/schema#, which is no resource of the library's."""
    name = f"{scheme}://json-schema.org/{draft}/schema{end}"
    start = Matcher.compile(Grammar("json_schema", json.dumps({"$schema": name, **PAIR})), VOCABULARY)
    assert text_of(walk(start, 0)) == '[1, "b"]'


@pytest.mark.parametrize("name", ["http://json-schema.org/draft/2020-12/schema#", "http://json-schema.org/schema#"])
def test_the_latest_dialect_is_known_by_either_name(name: str) -> None:
    schema = {"$schema": name, "type": "array", "prefixItems": [{"const": 1}], "items": False, "minItems": 1}
    assert text_of(walk(Matcher.compile(Grammar("json_schema", json.dumps(schema)), VOCABULARY), 0)) == "[1]"


@pytest.mark.parametrize("name", ["http://json-schema.invalid/schema#", "http://json-schema.org/draft-03/schema#"])
def test_other_dialects_are_refused(name: str) -> None:
    """The library takes draft 3 for its latest, and would leave out what draft 3 alone knows."""
    source = json.dumps({"$schema": name, "type": "integer", "divisibleBy": 2})
    with pytest.raises(InvalidRequest, match=r"json-schema\.invalid|draft 3"):
        Matcher.compile(Grammar("json_schema", source), VOCABULARY)


def test_a_property_that_says_it_is_required_is_refused() -> None:
    """As in draft 3. The library left it out, and the property with it."""
    schema = {"type": "object", "properties": {"a": {"type": "integer", "required": True}}}
    with pytest.raises(InvalidRequest, match="required is a list of names"):
        Matcher.compile(Grammar("json_schema", json.dumps(schema)), VOCABULARY)
    named_so = {"type": "object", "properties": {"required": True, "type": {"enum": [1]}}, "required": ["type"]}
    Matcher.compile(Grammar("json_schema", json.dumps(named_so)), VOCABULARY)


def test_an_output_beside_the_grammar_is_an_error() -> None:
    matcher = Matcher.compile(Grammar("regex", "ab"), VOCABULARY)
    with pytest.raises(InternalError, match="left its grammar"):
        after(matcher, [ord("b")])


def test_a_grammar_without_an_end_is_the_clients_fault() -> None:
    """It was told as a defect of ours, 500, where its first token had come."""
    matcher = Matcher.compile(Grammar("lark", 'start: "a" start'), VOCABULARY)
    matcher.allowed()
    with pytest.raises(InvalidRequest, match="make it simpler"):
        after(matcher, [ord("a")])


def test_a_grammar_that_gets_too_complex_under_way_is_its_clients_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of the library's ways to say so: as it makes a mask, and as it takes a token."""
    tight = {"step_lexer_fuel": 200, "step_max_items": 500, "max_lexer_states": 200}
    bounds = llguidance.LLParserLimits(initial_lexer_fuel=10**6, verbose_errors=False, **tight)
    monkeypatch.setattr(limits, "LIBRARY", bounds)
    wide = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(300)}}
    for grammar, text in (
        (Grammar("regex", "(.*a.{15}b)|(.*c.{15}d)|(.*e.{20}f)"), b"aceacaeaceaceaceaceacaeaeeecca"),
        (Grammar("json_schema", json.dumps(wide)), b'{"p1": "a"'),
    ):
        matcher = Matcher.compile(grammar, VOCABULARY)
        with pytest.raises(InvalidRequest, match=r"cannot be followed after \d+ tokens"):
            _follow(matcher, text)


def _follow(matcher: Matcher, text: bytes) -> None:
    for length in range(len(text)):
        after(matcher, text[:length])


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar("regex", "a\ud800"), "surrogate"),
        (Grammar("lark", 'start: "\ud800"'), "surrogate"),
        (Grammar("json_schema", '{"pattern": "\\ud800"}'), "surrogate"),
        (Grammar("json_schema", '{"patternProperties": [[1], 2]}'), "patternProperties"),
        (Grammar("json_schema", "{"), "not JSON"),
        (Grammar("json_schema", "[]"), "is an object"),
        (Grammar("json_schema", '{"minimum": NaN}'), "not JSON"),
        (Grammar("json_schema", '{"type": "strin"}'), "strin"),
        (Grammar("json_schema", '{"not": {}}'), "Unimplemented keys.*not"),
        (Grammar("json_schema", '{"uniqueItems": true}'), "Unimplemented keys.*uniqueItems"),
        (Grammar("json_schema", '{"properties": {"a": {"if": {}, "then": {}}}}'), "Unimplemented keys"),
        (Grammar("json_schema", '{"x-guidance": {"whitespace_flexible": true}}'), "x-guidance"),
        (Grammar("json_schema", '{"$ref": "https://example.com/schema"}'), "example.com"),
        (Grammar("json_schema", '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}'), "nothing can match"),
        (Grammar("json_schema", '{"type": "object", "required": ["a"], "additionalProperties": false}'), "required"),
        (Grammar("json", "{}"), "no source"),
        (Grammar("choice", "[]"), "at least one"),
        (Grammar("choice", '["a", 1]'), "strings"),
        (Grammar("regex", "("), "regex"),
        (Grammar("regex", "a(?=b)"), "look-around"),
        (Grammar("lark", "start: nothing"), "nothing"),
        (Grammar("lark", "start: <|nobody|>"), "nobody"),
        (Grammar("lark", "start: start"), "nothing can match"),
    ],
    ids=lambda value: value.source if isinstance(value, Grammar) else "",
)
def test_what_is_no_grammar_is_refused(grammar: Grammar, message: str) -> None:
    small = Vocabulary.of_bytes(TOKENIZER.special_ids)
    for vocabulary in (VOCABULARY, small):
        with pytest.raises(InvalidRequest, match=message):
            Matcher.compile(grammar, vocabulary)


def test_unique_items_that_need_not_be_are_no_constraint() -> None:
    grammar = Grammar("json_schema", '{"type": "array", "uniqueItems": false, "items": {"const": 1}}')
    (ids,) = TOKENIZER.encode_batch(["[1, 1]"])
    assert ids_of(after(Matcher.compile(grammar, VOCABULARY), ids)) == [*STOPS]
