"""Whatever a grammar of calls allows is read as a call."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import llguidance
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.odd_schemas import odd_schemas
from support.random_author import random_output

from glm_cluster.errors import InvalidRequest
from glm_cluster.text.grammar.cleaning import cleaned
from glm_cluster.text.grammar.matcher import Matcher
from glm_cluster.text.grammar.scrutiny import Scrutiny, grammar_fault
from glm_cluster.text.grammar.vocabulary import Vocabulary
from glm_cluster.text.tokenizer import Plain, Segment, Special
from glm_cluster.text.tools.choice import forced_calls, strict_calls
from glm_cluster.text.tools.output import Family, OutputReader, call_reader, parse
from glm_cluster.text.tools.prompt import thinking_at_end, with_thinking_closed
from glm_cluster.text.tools.reasoning import State
from glm_cluster.text.tools.rules import tagged_rules
from glm_cluster.text.tools.tool import Tool

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"$ref": "#/$defs/days"},
        "unit": {"type": "string", "enum": ["°C", '"F"']},
        "late": {"type": ["boolean", "null"]},
    },
    "required": ["city"],
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
TOOLS = (
    Tool(name="get_weather", parameters=WEATHER),
    Tool(name="now"),
    Tool(name="python", built_in=True),
    Tool(name="simple_browser", built_in=True),
)
FUNCTIONS = TOOLS[:2]
TURN = 151337
BYTES = Vocabulary.of_bytes()
STOP = 256


@pytest.fixture(scope="module")
def library(glm4_directory: Path) -> Any:
    source = (glm4_directory / "tokenizer.json").read_text(encoding="utf-8")
    return llguidance.LLTokenizer(source, eos_token=151338)


def allows(library: Any, grammar: str, *parts: str | int) -> bool:
    """Whether all of the output is allowed and it may end there."""
    matcher = llguidance.LLMatcher(library, grammar)
    assert not matcher.get_error()
    ids = [id for part in parts for id in ([part] if isinstance(part, int) else library.tokenize_str(part))]
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("output", "allowed"),
    [
        (['get_weather\n{"city": "北京", "days": 2}'], True),
        (['get_weather\n{"city": "", "unit": "\\"F\\"", "late": null}'], True),
        (["now\n{}"], True),
        (["python\nprint(1)\n"], True),
        (['simple_browser\nsearch("a b", recency_days=3)'], True),
        (["simple_browser\nmclick([1, 2, 3])"], True),
        (['simple_browser\nopen_url("http://a")'], True),
        (["now\n{}", TURN, 'get_weather\n{"city": "x"}', TURN, "now\n{}"], True),
        (["simple_browser\nrm -rf"], False),
        (["get_weather\n{}"], False),
        (['get_weather\n{"city": "x", "days": 10}'], False),
        (['get_weather\n{"city": "x", "more": 1}'], False),
        (['get_weather\n{"city": "x"'], False),
        (['now\n{"a": 1}'], False),
        (["Hello"], False),
        (["other\n{}"], False),
    ],
)
def test_calls_of_glm4(library: Any, output: list[str | int], allowed: bool) -> None:
    grammar = forced_calls(TOOLS, "glm4", ["<|assistant|>"], parallel=True)
    assert grammar.kind == "lark"
    assert allows(library, grammar.source, *output) == allowed
    if allowed:
        text = "".join("<|assistant|>" if isinstance(part, int) else part for part in output)
        parsed = parse(OutputReader(calls=call_reader("glm4", TOOLS, certain=True)), text)
        assert len(parsed.calls) == len([part for part in output if part != TURN])
        assert parsed.content is None
        assert all(isinstance(json.loads(call.arguments), dict) for call in parsed.calls)


@pytest.mark.parametrize("specials", [["<|assistant|>"], []])
def test_one_call_where_there_may_be_one(library: Any, specials: list[str]) -> None:
    grammar = forced_calls(TOOLS, "glm4", specials, parallel=not specials).source
    assert allows(library, grammar, "now\n{}")
    assert not allows(library, grammar, "now\n{}", TURN, "now\n{}")


@pytest.mark.parametrize(
    ("output", "allowed"),
    [
        (["\nHello\nworld"], True),
        (['get_weather\n{"city": "x", "days": 2}'], True),
        (["get_weather\nis a tool"], True),
        (["get_weather"], True),
        (['now\n{"any": [1]}'], True),
        (["python\n{1}"], True),
        (["I call.", TURN, 'get_weather\n{"city": "x"}', TURN, "\nDone"], True),
        (['get_weather\n{"days": 2}'], False),
        (['\nget_weather\n{"days": 2}'], False),
        (['get_weather\n{"city": "x"} and'], False),
        (["I call.", TURN, 'get_weather\n{"town": "x"}'], False),
        (['\x1fget_weather\u3000\t\n{"days": 2}'], False),
        (["get_weather\n\n{see} get_weather {"], True),
        (["now\n{1}"], False),
    ],
)
def test_strict_calls_keep_to_their_schemas_and_text_is_free(
    library: Any, output: list[str | int], allowed: bool
) -> None:
    tools = (Tool(name="get_weather", parameters=WEATHER, strict=True), *TOOLS[1:])
    grammar = strict_calls(tools, "glm4", ["<|assistant|>"], None)
    assert grammar is not None
    assert allows(library, grammar.source, *output) == allowed


def tagged(family: Family, name: str, **arguments: str) -> str:
    end = "\n" if family == "glm45" else ""
    pairs = (f"<arg_key>{key}</arg_key>{end}<arg_value>{value}</arg_value>{end}" for key, value in arguments.items())
    return f"<tool_call>{name}{end}{''.join(pairs)}</tool_call>"


@pytest.mark.parametrize("family", ["glm45", "glm47"])
def test_calls_between_tags(library: Any, family: Family) -> None:
    grammar = forced_calls(FUNCTIONS, family, (), parallel=True).source
    full = tagged(family, "get_weather", city="a <b> </c\n", days="2", unit='"F"', late="null")
    both = full + ("\n" if family == "glm45" else "") + tagged(family, "now")
    assert allows(library, grammar, full)
    assert allows(library, grammar, both)
    assert allows(library, grammar, tagged(family, "get_weather", city="", late="true"))
    parsed = parse(OutputReader(calls=call_reader(family, FUNCTIONS)), both)
    assert [json.loads(call.arguments) for call in parsed.calls] == [
        {"city": "a <b> </c\n", "days": 2, "unit": '"F"', "late": None},
        {},
    ]


TAGS = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<think>", "</think>")


@pytest.fixture(scope="module")
def tagged_library(glm4_content: dict[str, Any]) -> Any:
    """Of a tokenizer whose tags are tokens."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": TURN + 6 + index, "content": tag, **flags} for index, tag in enumerate(TAGS)]
    content = {**glm4_content, "added_tokens": [*glm4_content["added_tokens"], *added]}
    return llguidance.LLTokenizer(json.dumps(content), eos_token=151338)


def in_tokens(text: str) -> list[str | int]:
    parts = (part for part in re.split("(" + "|".join(TAGS) + ")", text) if part)
    return [TURN + 6 + TAGS.index(part) if part in TAGS else part for part in parts]


@pytest.mark.parametrize("family", ["glm45", "glm47"])
def test_tags_that_are_tokens(tagged_library: Any, family: Family) -> None:
    grammar = forced_calls(FUNCTIONS, family, TAGS, parallel=True).source
    ids = in_tokens(tagged(family, "get_weather", city="a <b> \n", days="2", unit="°C", late="null"))
    assert allows(tagged_library, grammar, *ids)
    assert not allows(tagged_library, grammar, *ids[:-1])


STRICT = Tool(name="get_weather", parameters=WEATHER, strict=True)
GOOD, LOOSE = {"city": "x", "days": "2"}, {"any": "[1]", "more": ""}


@pytest.mark.parametrize("family", ["glm45", "glm47"])
@pytest.mark.parametrize(
    ("state", "before", "allowed"),
    [
        (None, "", True),
        (None, "I look: <tool\n", True),
        ("after", "\n", True),
        ("inside", "so\n</think>", True),
        ("inside", "</think>\nWell. ", True),
        ("inside", "so", False),
        ("before", "\n<think>so\n</think>\n", True),
        ("before", "Well. ", True),
        ("before", "<think>so ", False),
        ("before", "Well. <think></think>", False),
    ],
)
def test_between_tags_strict_calls_begin_after_the_reasoning(
    tagged_library: Any, family: Family, state: State | None, before: str, allowed: bool
) -> None:
    grammar = strict_calls([STRICT, *FUNCTIONS[1:]], family, TAGS, state)
    assert grammar is not None
    good, loose = tagged(family, "get_weather", **GOOD), tagged(family, "now", **LOOSE)
    text = f"{before}{good}\n{loose}{good} end"
    assert allows(tagged_library, grammar.source, *in_tokens(text)) == allowed
    for wrong in ({"days": "2"}, {"city": "x", "days": "10"}, {"city": "x", "more": "1"}):
        assert not allows(tagged_library, grammar.source, *in_tokens(before + tagged(family, "get_weather", **wrong)))
    assert not allows(tagged_library, grammar.source, *in_tokens(before + tagged(family, "other")))
    assert not allows(tagged_library, grammar.source, *in_tokens(before + good)[:-1])


@pytest.mark.parametrize(
    ("state", "text"), [("inside", "so"), ("before", "\n<think>so"), ("after", "Hello\n"), (None, "")]
)
def test_a_strict_tool_need_not_be_called(tagged_library: Any, state: State | None, text: str) -> None:
    grammar = strict_calls([STRICT], "glm47", TAGS, state)
    assert grammar is not None
    assert allows(tagged_library, grammar.source, *in_tokens(text))


def test_nothing_is_held_to_where_a_call_is_not_told_from_text() -> None:
    assert strict_calls([STRICT], "glm45", (), None) is None
    assert strict_calls([STRICT], "glm45", TAGS[:6], None) is not None
    assert strict_calls([STRICT], "glm45", TAGS[:6], "before") is None
    assert strict_calls([STRICT], "glm4", TAGS, "before") is None


@pytest.mark.parametrize("family", ["glm45", "glm47"])
def test_calls_between_tags_that_are_refused(library: Any, family: Family) -> None:
    grammar = forced_calls(FUNCTIONS, family, (), parallel=False).source
    assert not allows(library, grammar, tagged(family, "get_weather", days="2"))
    assert not allows(library, grammar, tagged(family, "get_weather", city="a", days="two"))
    assert not allows(library, grammar, tagged(family, "get_weather", city="a", more="x"))
    assert not allows(library, grammar, tagged(family, "other"))
    assert not allows(library, grammar, tagged(family, "now") * 2)
    assert not allows(library, grammar, tagged(family, "now")[:-1])


def test_a_string_is_written_as_it_is_wherever_its_schema_stands(library: Any) -> None:
    """As it is read."""
    properties = {"a": {"$ref": "#/definitions/text"}, "b": {"$ref": "#/definitions/some"}, "c": {"allOf": [{}]}}
    definitions = {"text": {"type": "string", "enum": ["x y", "z"]}, "some": {"type": ["string", "null"]}}
    parameters = {"properties": properties, "definitions": definitions, "required": ["a", "b"]}
    tool = Tool(name="f", parameters=parameters)
    grammar = forced_calls([tool], "glm47", (), parallel=False).source
    text = tagged("glm47", "f", a="x y", b='"null"')
    assert allows(library, grammar, text)
    assert not allows(library, grammar, tagged("glm47", "f", a='"x y"', b="null"))
    (call,) = parse(OutputReader(calls=call_reader("glm47", [tool])), text).calls
    assert json.loads(call.arguments) == {"a": "x y", "b": "null"}


RAW: list[tuple[dict[str, Any], str, bool]] = [
    ({"minLength": 1, "maxLength": 3, "description": "x"}, "北é\n", True),
    ({"minLength": 1, "maxLength": 3}, "", False),
    ({"minLength": 1, "maxLength": 3}, "abcd", False),
    ({"maxLength": 4096}, "abcd", True),
    ({"const": "a/b"}, "a/b", True),
    ({"const": "a", "enum": ["a", "b"]}, "a", True),
    ({"const": "a", "enum": ["a", "b"]}, "b", False),
    ({"enum": ["a", "北京", "abc", 5], "minLength": 2, "maxLength": 2}, "北京", True),
    ({"enum": ["a", "北京", "abc", 5], "minLength": 2, "maxLength": 2}, "a", False),
    ({"enum": ["a", "北京", "abc", 5], "minLength": 2, "maxLength": 2}, "abc", False),
    ({"const": "a/b"}, "a", False),
    ({"enum": ["", "a"]}, "", True),
    ({"minLength": 2.0}, "ab", True),
    ({"minLength": 2.0}, "a", False),
    ({"pattern": r"^\d{2}/[a-c]+$"}, "12/ab", True),
    ({"pattern": r"^\d{2}/[a-c]+$"}, "12/abx", False),
    ({"pattern": r"^\d{2}/[a-c]+$"}, "١٢/ab", False),
    ({"pattern": r"[0-9]\$"}, "x 1$ y", True),
    ({"pattern": r"[0-9]\$"}, "x 1 y", False),
    ({"pattern": "^a|b"}, "a c", True),
    ({"pattern": "b$", "maxLength": 2}, "ab", True),
    ({"pattern": "b$", "maxLength": 2}, "aab", False),
]


@pytest.mark.parametrize("specials", [(), TAGS])
@pytest.mark.parametrize(("schema", "text", "allowed"), RAW)
def test_strings_of_strict_tools_keep_to_all_that_their_schemas_say(
    library: Any, tagged_library: Any, specials: tuple[str, ...], schema: dict[str, Any], text: str, allowed: bool
) -> None:
    parameters = {"properties": {"a": {"type": "string", **schema}}, "required": ["a"]}
    tool = Tool(name="f", parameters=parameters, strict=True)
    grammar = forced_calls([tool], "glm47", specials, parallel=False).source
    call = tagged("glm47", "f", a=text)
    if specials:
        assert not allows(tagged_library, grammar, *in_tokens(call)[:-2], "</", "arg_value>", *in_tokens(call)[-2:])
        assert allows(tagged_library, grammar, *in_tokens(call)) == allowed
    else:
        assert allows(library, grammar, call) == allowed
    (read,) = parse(OutputReader(calls=call_reader("glm47", [tool])), call).calls
    assert json.loads(read.arguments) == {"a": text}


def refused(parameters: dict[str, Any]) -> str:
    """Why a strict tool is, which is none where it is not strict."""
    assert forced_calls([Tool(name="f", parameters=parameters)], "glm47", (), parallel=False)
    with pytest.raises(InvalidRequest, match=r"^tools: strict: ") as caught:
        forced_calls([Tool(name="f", parameters=parameters, strict=True)], "glm47", (), parallel=False)
    with pytest.raises(InvalidRequest, match=r"^tools: strict: "):
        strict_calls([Tool(name="f", parameters=parameters, strict=True)], "glm47", TAGS, None)
    assert caught.value.param == "tools"
    assert "'f'" in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    "schema",
    [
        {"format": "date"},
        {"not": {}},
        {"allOf": [{}]},
        {"maxLength": 4097},
        {"minLength": 2.5},
        {"minLength": -1},
        {"maxLength": True},
        {"pattern": "^a", "enum": ["a"]},
        {"pattern": 5},
        {"enum": ["a", "b"], "minLength": 2},
        {"enum": [], "description": "x"},
        {"enum": ["</arg_value>"]},
        {"const": 5},
        {"const": "c", "enum": ["a", "b"]},
        {"anyOf": [{"minLength": 3}], "enum": ["a"]},
    ],
)
def test_what_cannot_be_kept_of_a_string_is_refused_of_strict_tools_alone(schema: dict[str, Any]) -> None:
    why = refused({"properties": {"a": {"type": "string", **schema}}})
    assert f"'{next(iter(schema))}' " in why
    assert "the string 'a' of 'f' cannot be kept" in why


def test_a_pattern_that_is_too_long_is_refused_by_its_field() -> None:
    parameters = {"properties": {"a": {"type": "string", "pattern": "a" * 5000}}}
    with pytest.raises(InvalidRequest, match=r"^tools: a regex has more than 4096 bytes") as caught:
        forced_calls([Tool(name="f", parameters=parameters, strict=True)], "glm47", (), parallel=False)
    assert caught.value.param == "tools"


@pytest.mark.parametrize("beside", [{"maxLength": 3}, {"pattern": "a"}, {"enum": ["a"]}, {"minLength": 2}])
def test_nor_is_what_stands_beside_a_reference(beside: dict[str, Any]) -> None:
    chained = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c", **beside}, "c": {"type": "string"}}
    for reference in ("#/$defs/a", "#/$defs/b"):
        why = refused({"properties": {"a": {"$ref": reference, "description": "x"}}, "$defs": chained})
        assert f"'{next(iter(beside))}' beside '$ref' in the string 'a' of 'f' cannot be kept" in why


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"required": ["a"]}]},
        {"$ref": "#/$defs/A", "$defs": {"A": {"properties": {"b": {}}}}},
        {"dependentRequired": {"a": ["b"]}},
        {"minProperties": 1},
        {"patternProperties": {}},
        {"additionalProperties": {"type": "string"}},
        {"required": ["a", "c"]},
        {"required": True},
        {"properties": {"a": False}},
    ],
)
def test_what_cannot_be_kept_of_all_arguments_is_refused_too(schema: dict[str, Any]) -> None:
    why = refused({"properties": {"a": {"type": "integer"}, "b": True}, **schema})
    assert f"'{next(iter(schema))}' of the arguments of 'f' cannot be kept" in why


def test_strict_schemas_as_clients_write_them_are_kept(library: Any) -> None:
    """All keywords of those that pydantic and the SDKs make."""
    parameters = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "trip",
        "title": "Trip",
        "description": "d",
        "type": "object",
        "properties": {
            "unit": {"$ref": "#/$defs/Unit", "description": "d", "default": "C"},
            "kind": {"const": "trip", "enum": ["trip"], "title": "Kind", "type": "string"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None, "title": "Note"},
            "legs": {"type": "array", "items": {"$ref": "#/$defs/Leg"}},
        },
        "required": ["unit", "kind", "note", "legs"],
        "additionalProperties": False,
        "$defs": {
            "Unit": {"enum": ["C", "F"], "title": "Unit", "type": "string"},
            "Leg": {
                "type": "object",
                "properties": {
                    "to": {"type": "string"},
                    "then": {"anyOf": [{"$ref": "#/$defs/Leg"}, {"type": "null"}]},
                },
                "required": ["to", "then"],
                "additionalProperties": False,
            },
        },
    }
    grammar = forced_calls([Tool(name="f", parameters=parameters, strict=True)], "glm47", (), parallel=False).source
    good = {"unit": "F", "kind": "trip", "note": "null", "legs": '[{"to": "x", "then": {"to": "y", "then": null}}]'}
    assert allows(library, grammar, tagged("glm47", "f", **good))
    for wrong in ({"unit": "K"}, {"kind": "t"}, {"note": "5"}, {"legs": '[{"to": "x"}]'}):
        assert not allows(library, grammar, tagged("glm47", "f", **{**good, **wrong}))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("value", "good", "wrong"),
    [
        ({"type": "array", "items": {"$ref": "#"}}, '[{"n": 1, "a": [{"n": 2}]}]', '[[{"n": 1}]]'),
        ({"type": "array", "items": {"$ref": "#"}}, "[]", '[{"a": []}]'),
        ({"$ref": "#/properties/n"}, "1", '"x"'),
        ({"$ref": "#/$defs/tree"}, '{"kid": {"n": 1}}', '{"kid": {}}'),
        (
            {"type": "object", "properties": {"default": {"$ref": "#/properties/n"}}},
            '{"default": 1}',
            '{"default": []}',
        ),
        ({"enum": [{"$ref": "#"}]}, '{"$ref": "#"}', '{"n": 1}'),
    ],
)
def test_references_mean_the_same_in_a_call(
    library: Any, strict: bool, value: dict[str, Any], good: str, wrong: str
) -> None:
    tree = {"type": "object", "properties": {"kid": {"$ref": "#"}}, "required": ["kid"], "additionalProperties": False}
    parameters = {
        "$id": "node",
        "properties": {"n": {"type": "integer"}, "a": value},
        "required": ["n"],
        "$defs": {"tree": tree, "root_0": {"type": "null"}},
    }
    tool = Tool(name="f", parameters=parameters, strict=strict)
    grammar = forced_calls([tool], "glm47", (), parallel=False).source
    assert allows(library, grammar, tagged("glm47", "f", n="1", a=good))
    assert not allows(library, grammar, tagged("glm47", "f", n="1", a=wrong))


def test_required_that_is_no_list_asks_for_nothing(library: Any) -> None:
    tool = Tool(name="f", parameters={"properties": {"a": {"type": "integer"}}, "required": True})
    assert allows(library, forced_calls([tool], "glm47", (), parallel=False).source, tagged("glm47", "f"))


def test_a_grammar_is_written_no_further_than_an_engine_would_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each property that refers to a definition has all of them with it."""
    written: list[str] = []

    def counted(index: int, tool: Tool, *more: Any) -> Iterator[str]:
        for line in tagged_rules(index, tool, *more):
            written.append(line)
            yield line

    monkeypatch.setattr("glm_cluster.text.tools.choice.tagged_rules", counted)
    definitions = {"a": {"type": "object", "description": "x" * 30_000}}
    for name, is_long in (("$ref", True), ("description", False)):
        properties = {f"p{index}": {"type": "array", "items": {name: "#/$defs/a"}} for index in range(100)}
        tool = Tool(name="f", parameters={"properties": properties, "$defs": definitions})
        written.clear()
        if is_long:
            with pytest.raises(InvalidRequest, match=r"^tools: .*65536 bytes.* definitions") as caught:
                forced_calls([tool] * 100, "glm47", (), parallel=False)
            assert caught.value.param == "tools"
        else:
            assert forced_calls([tool], "glm47", (), parallel=False)
        assert sum(map(len, written)) < 100_000


EMAIL = {"type": "string", "format": "email", "pattern": r"^(?!\.)(?!.*\.\.)[a-z]+@[a-z]+$", "maxLength": 9}
ASK_NOTHING: list[dict[str, Any]] = [
    {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}},
    {"type": "string", "format": "path"},
    {"type": "string", "enum": None, "pattern": None, "format": None, "minLength": None},
    {"type": "array", "items": {"type": "integer", "minimum": None}, "uniqueItems": False},
    {"type": "object", "properties": {"b": {"type": "integer"}}, "required": None, "additionalProperties": None},
    {"$schema": "https://json-schema.org/draft-07/schema", "type": "integer"},
]


@pytest.mark.parametrize("family", ["glm4", "glm45", "glm47"])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("asked", ASK_NOTHING, ids=str)
def test_what_asks_for_nothing_is_no_matter(family: Family, strict: bool, asked: dict[str, Any]) -> None:
    root = {"$schema": "https://json-schema.org/draft-07/schema", "type": None, "required": None, "title": None}
    parameters = {**root, "properties": {"v": asked}, "additionalProperties": None}
    for arguments in made(Tool(name="f", parameters=parameters, strict=strict), family):
        jsonschema.validate(arguments, {"properties": {"v": cleaned(asked)}, "additionalProperties": False})


DIGIT = {"minimum": 0, "maximum": 9}
UNKEPT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (EMAIL, {"type": "string"}),
    ({"type": "array", "items": EMAIL}, {"items": {"type": "string"}}),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, {"items": {"type": "integer"}}),
    ({"oneOf": [{"type": "integer", **DIGIT}, {"type": "number", **DIGIT}]}, {"type": "number"}),
    ({"type": "object", "propertyNames": {"enum": ["a"]}}, {"type": "object"}),
    ({"type": "object", "properties": {"a": {}}, "required": ["b"], "additionalProperties": False}, {}),
    ({"type": "integer", "minimum": 2, "maximum": 1}, {}),
    ({"$ref": "#/$defs/nowhere"}, {}),
    ({"$ref": "http://localhost/a.json"}, {}),
    ({"type": "OBJECT"}, {}),
    ({"anyOf": [5]}, {}),
    ({"enum": []}, {}),
]


@pytest.mark.parametrize("family", ["glm4", "glm45", "glm47"])
@pytest.mark.parametrize(("asked", "left"), UNKEPT, ids=str)
def test_what_cannot_be_kept_is_left_out_unless_a_tool_is_strict(
    family: Family, asked: dict[str, Any], left: dict[str, Any]
) -> None:
    parameters = {"properties": {"v": asked}, "required": ["v"]}
    for arguments in made(Tool(name="f", parameters=parameters), family):
        jsonschema.validate(arguments.get("v", {}), left)
    with pytest.raises(InvalidRequest, match=r"^tools: strict: .*'f'.*or send strict: false") as caught:
        forced_calls([Tool(name="f", parameters=parameters, strict=True)], family, (), parallel=False)
    assert caught.value.param == "tools"


@pytest.mark.parametrize("family", ["glm4", "glm45", "glm47"])
def test_one_odd_tool_leaves_the_others_what_they_ask(family: Family) -> None:
    odd = Tool(name="odd", parameters={"properties": {"v": {"$ref": "#/nowhere"}}, "required": ["v", "w"]})
    tools = [Tool(name=f"f{index}", parameters=WEATHER) for index in range(29)]
    alone = forced_calls(tools, family, (), parallel=True).source.splitlines()
    beside = forced_calls([*tools, odd], family, (), parallel=True).source.splitlines()
    assert [line for line in alone[2:] if line not in beside] == []
    assert fault_of(beside) == ""


@pytest.mark.parametrize("family", ["glm4", "glm47"])
@pytest.mark.parametrize(
    "odd",
    [
        {"v": {"type": "string", "minLength": 5, "maxLength": 2}},
        {"v": {"type": "string", "enum": ["any text", "\x01"]}},
        {"v": {"type": "string", "enum": ["\ud800"]}},
        {"\x01": {"type": "string"}},
        {"\ud800": {"type": "integer"}},
    ],
    ids=ascii,
)
def test_what_cannot_be_written_at_all_is_left_out_too(library: Any, family: Family, odd: dict[str, Any]) -> None:
    parameters = {"properties": {"a": {"const": 1}, **odd}, "required": ["a", *odd]}
    grammar = forced_calls([Tool(name="f", parameters=parameters)], family, (), parallel=False).source
    written = {"v", "\x01"} if family == "glm4" else {"v"}
    values = {"a": 1, **{name: "any text" for name in odd if name in written}}
    as_text = {name: str(value) for name, value in values.items()}
    assert allows(library, grammar, tagged(family, "f", **as_text) if family == "glm47" else f"f\n{json.dumps(values)}")


@pytest.mark.parametrize("family", ["glm4", "glm47"])
def test_one_odd_property_leaves_the_others_what_they_ask(family: Family) -> None:
    """A reference that led nowhere made any object of all arguments."""
    properties = {"a": {"type": "integer"}, "b": {"$ref": "#/definitions/Gone"}}
    for arguments in made(Tool(name="f", parameters={"properties": properties, "required": ["a"]}), family):
        assert isinstance(arguments["a"], int)
        assert arguments.keys() <= {"a", "b"}


@pytest.mark.parametrize("family", ["glm4", "glm47"])
def test_once_time_is_up_anything_will_do_unless_a_tool_is_strict(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glm_cluster.text.tools.choice.Scrutiny", lambda: Scrutiny(0.0))
    forced = forced_calls([Tool(name="f", parameters=WEATHER)], family, (), parallel=False)
    assert "minimum" not in forced.source
    Matcher.compile(forced, BYTES)
    with pytest.raises(InvalidRequest, match=r"^tools: strict: .* take too long to look over"):
        forced_calls([STRICT], family, (), parallel=False)
    with pytest.raises(InvalidRequest, match=r"^tools: strict: .* take too long to look over"):
        strict_calls([STRICT], family, TAGS, None)


def test_a_required_name_without_a_property_is_left_out() -> None:
    tool = Tool(name="f", parameters={"properties": {"a": {"const": 1}}, "required": ["a", "gone"]})
    assert {json.dumps(arguments) for arguments in made(tool, "glm4")} == {'{"a": 1}'}


def test_a_string_with_a_pattern_that_cannot_be_followed_names_it() -> None:
    parameters = {"properties": {"a": {"type": "string", "pattern": "^(?!x)a$"}}}
    with pytest.raises(InvalidRequest, match=r"^tools: strict: the pattern '\^\(\?!x\)a\$' .*send strict: false"):
        forced_calls([Tool(name="f", parameters=parameters, strict=True)], "glm47", (), parallel=False)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(odd_schemas("(?=a)", "^a", "#/$defs/a"), st.sampled_from(["glm4", "glm47"]))
def test_no_schema_of_a_tool_that_is_not_strict_is_refused(asked: dict[str, Any], family: Family) -> None:
    inside = {"properties": {"v": asked}, "required": ["v"], "$defs": {"a": {"type": "integer"}}}
    properties = asked.get("properties")
    outside = {**asked, "type": "object", "properties": properties if isinstance(properties, dict) else {}}
    for parameters in (inside, outside):
        Matcher.compile(forced_calls([Tool(name="f", parameters=parameters)], family, (), parallel=False), BYTES)


def fault_of(lines: list[str]) -> str:
    return grammar_fault({"lark_grammar": "\n".join((*lines, ""))})


def made(tool: Tool, family: Family) -> list[dict[str, Any]]:
    """The arguments of calls written at random, as they are read."""
    start = Matcher.compile(forced_calls([tool], family, (), parallel=False), BYTES)
    outputs = [random_output(start.fork(), (STOP,), seed=str(seed), most=2000) for seed in range(5)]
    texts = [bytes(output).decode() for output in outputs if output is not None]
    calls = [parse(OutputReader(calls=call_reader(family, [tool])), text).calls for text in texts]
    assert calls
    return [json.loads(call.arguments) for (call,) in calls]


def test_odd_names_are_spelled_or_refused(library: Any) -> None:
    odd = Tool(name="f", parameters={"properties": {'a"\\ é': {"type": "string"}}, "required": ['a"\\ é']})
    grammar = forced_calls([odd], "glm47", (), parallel=False).source
    assert allows(library, grammar, '<tool_call>f<arg_key>a"\\ é</arg_key><arg_value>x</arg_value></tool_call>')
    for name in ("\x01", "\ud800"):
        strict = Tool(name="f", parameters={"properties": {name: {}}}, strict=True)
        with pytest.raises(InvalidRequest, match="control character"):
            forced_calls([strict], "glm47", (), parallel=False)
    with pytest.raises(InvalidRequest, match="no tools"):
        forced_calls([], "glm4", (), parallel=False)


IDS = {"<|assistant|>": 1, "<think>": 2, "</think>": 3}
ROLE, OPEN, CLOSE, LINE = Special(1), Special(2), Special(3), Plain("\n")


@pytest.mark.parametrize(
    ("family", "prompt", "state", "added"),
    [
        ("glm45", [ROLE], "before", [LINE, OPEN, CLOSE, LINE]),
        ("glm45", [ROLE, LINE, OPEN, CLOSE], "after", [LINE]),
        ("glm47", [ROLE, OPEN], "inside", [CLOSE]),
        ("glm47", [ROLE, CLOSE], "after", []),
        ("glm4", [ROLE, LINE, OPEN], "inside", [CLOSE, LINE]),
        ("glm4", [Plain("<think>"), ROLE], "before", [LINE, OPEN, CLOSE, LINE]),
    ],
)
def test_thinking_is_closed(family: Family, prompt: list[Segment], state: str, added: list[Segment]) -> None:
    assert thinking_at_end(prompt, IDS) == state
    assert with_thinking_closed(prompt, IDS, family) == (*prompt, *added)


def test_tags_that_are_no_tokens() -> None:
    prompt = [ROLE, Plain("\n<think>\n")]
    assert thinking_at_end(prompt, {"<|assistant|>": 1}) == "inside"
    assert with_thinking_closed(prompt, {"<|assistant|>": 1}, "glm4") == (*prompt, Plain("</think>"), LINE)
    assert with_thinking_closed([ROLE], {"<|assistant|>": 1}, "glm4") == (ROLE,)
