"""Outputs are read as the families write them, however they are cut, in linear time."""

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_cluster.text.tools.output import OutputReader, call_reader, parse
from glm_cluster.text.tools.pieces import ArgumentsDelta, Call, Content, Parsed, Reasoning, joined
from glm_cluster.text.tools.reasoning import ReasoningSplitter, State, state_after
from glm_cluster.text.tools.tool import Tool

TYPED = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "when": {"type": ["string", "null"]},
        "unit": {"enum": ["c", "f"]},
        "how": {"anyOf": [{"type": "string"}, {"type": "array"}]},
        "list": {"type": "array"},
        "label": {"$ref": "#/$defs/a~1b"},
        "level": {"enum": ["7", 8, None]},
        "loop": {"$ref": "#/$defs/loop"},
    },
    "anyOf": [{"properties": {"id": {"type": "string"}}}, {"properties": {"id": {"type": "boolean"}}}],
    "$defs": {"a/b": {"type": "string"}, "loop": {"$ref": "#/$defs/loop"}},
}
TOOLS = (
    Tool(name="get_weather", parameters=TYPED),
    Tool(name="get"),
    Tool(name="python", built_in=True),
    Tool(name="simple_browser", built_in=True),
)


def reader(family: str = "glm4", state: State | None = None, tools: tuple[Tool, ...] = TOOLS) -> OutputReader:
    return OutputReader(
        calls=call_reader(family, tools),  # type: ignore[arg-type]
        thinks=None if state is None else ReasoningSplitter(state),
        skip_newline=True,
    )


def calls(family: str, text: str) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in parse(reader(family), text).calls]


def tools_of(case: dict[str, Any], default: list[str]) -> tuple[Tool, ...]:
    return tuple(Tool(name=name) for name in case.get("tools", default))


SPELLED_OUT = {"a": '"<|assistant|>'}
NESTED = {"city": 'a\n北é"', "o": {"b": [1.5, None]}}


@pytest.fixture(scope="module")
def vectors(shared_data: Path) -> dict[str, Any]:
    return json.loads((shared_data / "vectors" / "tool_parse.json").read_text(encoding="utf-8"))


def test_vectors_of_glm4(vectors: dict[str, Any]) -> None:
    for case in vectors["glm4_9b (name newline JSON)"]["cases"]:
        browser = () if "tools" in case else (Tool(name="simple_browser", built_in=True),)
        tools = (*tools_of(case, ["get_weather"]), *browser)
        parsed = parse(OutputReader(calls=call_reader("glm4", tools)), case["text"])
        if "result" in case:
            name, body = case["result"]["name"], case["result"]["content"]
            assert parsed == Parsed(None, None, (Call(name, json.dumps({"call": body}, ensure_ascii=False)),))
        elif "<|assistant|>" in case["text"]:
            assert parsed == Parsed("先查一下。", None, (Call("get_weather", '{"city": "北京"}'),))
        else:
            found = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in parsed.calls]
            assert found == (case["calls"] or [])
            assert parsed.content == (None if found else case.get("content", case["text"]))


def test_vectors_of_glm45(vectors: dict[str, Any]) -> None:
    for case in vectors["glm45 (xml)"]["cases"]:
        parsed = parse(OutputReader(calls=call_reader("glm45", ())), case["text"])
        assert [{"name": call.name, "arguments": json.loads(call.arguments)} for call in parsed.calls] == case["calls"]
        if "content" in case:
            assert parsed.content == (case["text"] if case["content"] == "(same text)" else case["content"])


@pytest.mark.parametrize(
    ("text", "content", "found"),
    [
        ("\nHello", "Hello", []),
        ("\n\nHello\n", "\nHello\n", []),
        ('\nget_weather\n{"city": "x"}', None, [("get_weather", {"city": "x"})]),
        ('get_weather\n{"city": "x"', 'get_weather\n{"city": "x"', []),
        ('get_weather\n{"city": "a\nb"}', 'get_weather\n{"city": "a\nb"}', []),
        ('get_weather\n{"city": NaN}', 'get_weather\n{"city": NaN}', []),
        ("get_weather\n[1]", "get_weather\n[1]", []),
        ("get_weather\n", "get_weather\n", []),
        ("get_weather", "get_weather", []),
        ('get_weathers\n{"a": 1}', 'get_weathers\n{"a": 1}', []),
        ('I call\nget_weather\n{"a": 1}', 'I call\nget_weather\n{"a": 1}', []),
        ('get_weather\n{"a": 1} done', 'get_weather\n{"a": 1} done', []),
        ('  get_weather \r\n{"city": "x"}\r\n\n', None, [("get_weather", {"city": "x"})]),
        ('get_weather\n{\n  "city": "a\\n\\u5317é\\"",\n  "o": {"b": [1.5, null]}\n}', None, [("get_weather", NESTED)]),
        ('get_weather\n {"city": "x"}', 'get_weather\n {"city": "x"}', []),
        ("get_weather\n\n{}", "get_weather\n\n{}", []),
        ("get_weather {}", "get_weather {}", []),
        ("get_weather\n{}\n\nDone.", "get_weather\n{}\n\nDone.", []),
        ("get_weather\n{}{}", "get_weather\n{}{}", []),
        ("get_weather\n{'city': 'x'}", "get_weather\n{'city': 'x'}", []),
        ("Get_Weather\n{}", "Get_Weather\n{}", []),
        ("get\n{}<|assistant|>", None, [("get", {})]),
        (
            'get\n{"a": "\\\\\\"<|assistant|>"}<|assistant|>get\n{}',
            None,
            [("get", {"a": '\\"<|assistant|>'}), ("get", {})],
        ),
        ('get\n{"a": "b<|assistant|>get\n{}', 'get\n{"a": "b<|assistant|>get\n{}', []),
        ("A\n<|assistant|>get\n{1}", "A\nget\n{1}", []),
        ("get\n{}<|assistant|>get_weather\n{}", None, [("get", {}), ("get_weather", {})]),
        ("\nA<|assistant|>\nB<|assistant|>get\n{}", "A\nB", [("get", {})]),
        ('python\nprint("1\\2")\n', None, [("python", {"code": 'print("1\\2")\n'})]),
        ("python\n", None, [("python", {"code": ""})]),
        ("\npython\nis a language", "python\nis a language", []),
        ('simple_browser\nsearch("北京")', None, [("simple_browser", {"call": 'search("北京")'})]),
        ("a <|assistant", "a <|assistant", []),
    ],
)
def test_calls_of_glm4(text: str, content: str | None, found: list[Any]) -> None:
    assert parse(reader(), text).content == content
    assert calls("glm4", text) == found


def test_under_a_grammar_arguments_come_at_once() -> None:
    certain = OutputReader(calls=call_reader("glm4", TOOLS, certain=True))
    first = [*certain.push('get\n{"a": '), *certain.push('"b')]
    assert joined(first).calls == (Call("get", '{"a": "b'),)


PYTHONIC = ['a"b', "it's", "it's", True, {"k": None}]


def at_once(family: str, *, certain: bool = True) -> OutputReader:
    """The reader of outputs that are calls or keep to a form."""
    calls = call_reader(family, TOOLS, certain=certain, at_once=True)  # type: ignore[arg-type]
    return OutputReader(calls=calls, skip_newline=True)


def tagged(*arguments: str, name: str = "get_weather") -> str:
    pairs = zip(arguments[::2], arguments[1::2], strict=True)
    inner = "".join(f"<arg_key>{key}</arg_key><arg_value>{value}</arg_value>" for key, value in pairs)
    return f"<tool_call>{name}{inner}</tool_call>"


@pytest.mark.parametrize(
    ("text", "content", "found"),
    [
        (tagged("city", "12", "days", "12"), None, [("get_weather", {"city": "12", "days": 12})]),
        (tagged("city", " a\n </tool_call> b "), None, [("get_weather", {"city": " a\n </tool_call> b "})]),
        (tagged("days", "many"), None, [("get_weather", {"days": "many"})]),
        (tagged("when", "null", "how", "[1]"), None, [("get_weather", {"when": None, "how": [1]})]),
        (tagged("when", "12", "how", "{}"), None, [("get_weather", {"when": "12", "how": "{}"})]),
        (tagged("unit", "c", "x", "True"), None, [("get_weather", {"unit": "c", "x": True})]),
        (tagged("x", "1e999", "y", "NaN"), None, [("get_weather", {"x": "1e999", "y": "NaN"})]),
        (tagged("x", "[" * 5000), None, [("get_weather", {"x": "[" * 5000})]),
        (tagged("x", "[" * 300 + "]" * 300), None, [("get_weather", {"x": "[" * 300 + "]" * 300})]),
        (tagged("x", " \n5 \n", "y", " a b "), None, [("get_weather", {"x": 5, "y": "a b"})]),
        (tagged("city", " 北京\n", "city", "C:\\d"), None, [("get_weather", {"city": "C:\\d"})]),
        (
            tagged("list", "['a\"b', \"it's\", 'it\\'s', True, {'k': None}]"),
            None,
            [("get_weather", {"list": PYTHONIC})],
        ),
        (
            tagged("list", '[{"code": "if x:\n\treturn [1, ]"},\n]', "x", "{'a': [1, 2,],}"),
            None,
            [("get_weather", {"list": [{"code": "if x:\n\treturn [1, ]"}], "x": {"a": [1, 2]}})],
        ),
        (
            tagged("list", '[{\\"id\\": \\"1\\"}]', "days", '"42"'),
            None,
            [("get_weather", {"list": [{"id": "1"}], "days": 42})],
        ),
        (
            tagged("days", "", "list", " [a\\n]", "x", "{}"),
            None,
            [("get_weather", {"days": "", "list": "[a\\n]", "x": {}})],
        ),
        (
            tagged("days", '"many"', "x", '"5"', "y", "'5'"),
            None,
            [("get_weather", {"days": "many", "x": "5", "y": "'5'"})],
        ),
        (tagged("label", "null", "loop", "null"), None, [("get_weather", {"label": "null", "loop": None})]),
        (tagged("level", "7", "id", "12"), None, [("get_weather", {"level": "7", "id": "12"})]),
        (tagged("level", "8", "id", "true"), None, [("get_weather", {"level": 8, "id": True})]),
        (tagged(name="\nget_weather\n"), None, [("get_weather", {})]),
        ("A \n" + tagged() + " dropped " + tagged(), "A", [("get_weather", {})] * 2),
        (
            tagged("city", "x")[:-12] + "<arg_key>da<arg_value>1</arg_value></tool_call>",
            None,
            [("get_weather", {"city": "x"})],
        ),
        (tagged(name=""), tagged(name=""), []),
        (tagged(name="two words"), tagged(name="two words"), []),
        ("<tool_call>a<b></tool_call> x ", "<tool_call>a<b></tool_call> x ", []),
        ("<tool_call>a" + tagged(), "<tool_call>a", [("get_weather", {})]),
        ("x <tool_call>" + "n" * 600 + tagged(), "x <tool_call>" + "n" * 600, [("get_weather", {})]),
        (tagged()[:-1], tagged()[:-1], []),
        (tagged() + " " + tagged()[:-1], None, [("get_weather", {})]),
        ("a <tool_", "a <tool_", []),
        ("a\n", "a\n", []),
    ],
)
def test_calls_of_glm45(text: str, content: str | None, found: list[Any]) -> None:
    assert parse(reader("glm45"), text).content == content
    assert calls("glm45", text) == found


def test_under_a_grammar_a_turn_that_is_spelled_out_in_an_argument_is_part_of_it() -> None:
    text = 'get\n{"a": "\\"<|assistant|>"}<|assistant|>get\n{}'
    for size in (1, 5, len(text)):
        stream = OutputReader(calls=call_reader("glm4", TOOLS, certain=True))
        pieces = [p for at in range(0, len(text), size) for p in stream.push(text[at : at + size])]
        found = joined([*pieces, *stream.finish()])
        assert found.calls == (Call("get", '{"a": "\\"<|assistant|>"}'), Call("get", "{}"))


def test_under_a_grammar_arguments_between_tags_come_at_once() -> None:
    text = tagged("city", 'a "b" \n北京', "days", "12", "label", "", "x", "[1]", name="get_weather")
    whole = parse(reader("glm45"), text + tagged(name="get"))
    for size in (1, 7, len(text)):
        stream = OutputReader(calls=call_reader("glm45", TOOLS, certain=True))
        pieces = [p for at in range(0, len(text), size) for p in stream.push(text[at : at + size])]
        pieces += [*stream.push(tagged(name="get")), *stream.finish()]
        assert joined(pieces) == whole
        if size == 1:
            assert len([piece for piece in pieces if isinstance(piece, ArgumentsDelta)]) > 12


def test_under_a_grammar_what_was_cut_off_of_a_call_is_told() -> None:
    for text, arguments in (
        ("<tool_call>get_weather<", ""),
        ("<tool_call>get_weather<arg_key>city</arg_key><arg_value>Par", '{"city": "Par'),
        ("<tool_call>get_weather<arg_key>days</arg_key><arg_value>12", ""),
        ("<tool_call>get_weather<arg_key>days</arg_key><arg_value>12</arg_value><arg_", '{"days": 12'),
    ):
        cut = parse(OutputReader(calls=call_reader("glm45", TOOLS, certain=True)), text)
        assert cut == Parsed(None, None, (Call("get_weather", arguments),))
    cut = parse(OutputReader(calls=call_reader("glm45", TOOLS, certain=True)), "<tool_call>get_w")
    assert cut == Parsed("<tool_call>get_w", None, ())


SAYS_CALLS = '{"a": "<|assistant|>get\\n{}", "b": "' + tagged() + '"}'


@pytest.mark.parametrize(
    ("family", "text", "content", "names"),
    [
        ("glm4", "\n" + SAYS_CALLS, SAYS_CALLS, []),
        ("glm4", SAYS_CALLS, SAYS_CALLS, []),
        ("glm4", "\nget\n{}", "get\n{}", []),
        ("glm4", "get\n{}<|assistant|>get_weather\n{}", None, ["get", "get_weather"]),
        ("glm4", "get_", "get_", []),
        ("glm4", "get\n[]", "get\n[]", []),
        ("glm4", "python\n1", None, ["python"]),
        ("glm4", "", None, []),
        ("glm45", SAYS_CALLS, SAYS_CALLS, []),
        ("glm45", tagged() + "\n" + tagged(name="get"), None, ["get_weather", "get"]),
        ("glm45", " " + tagged(), " " + tagged(), []),
        ("glm45", "<tool", "<tool", []),
    ],
)
def test_an_output_that_does_not_begin_as_a_call_is_text(
    family: str, text: str, content: str | None, names: list[str]
) -> None:
    for parts in (text, [text]):
        stream = at_once(family)
        pieces = [piece for part in parts for piece in stream.push(part)]
        parsed = joined([*pieces, *stream.finish()])
        assert (parsed.content, [call.name for call in parsed.calls]) == (content, names)


def test_a_form_that_begins_as_a_call_is_one_if_all_of_it_reads_as_one() -> None:
    assert parse(at_once("glm4", certain=False), "get\n{a}") == Parsed("get\n{a}", None, ())
    assert parse(at_once("glm4", certain=False), "get\n{}") == Parsed(None, None, (Call("get", "{}"),))


@pytest.mark.parametrize(
    ("state", "text", "thought", "content"),
    [
        ("before", "\n<think> a\n</think>\n\nb", "a", "b"),
        ("before", "<think></think>b", None, "b"),
        ("before", "\nb <think>c</think>", None, "b <think>c</think>"),
        ("before", "<thin", None, "<thin"),
        ("before", " " * 65 + "<think>", None, " " * 65 + "<think>"),
        ("inside", "\na b\n</think>\nc", "a b", "c"),
        ("inside", "a <think> b ", "a <think> b", None),
        ("inside", "a </thin", "a </thin", None),
        ("after", "\nc </think>", None, "c </think>"),
    ],
)
def test_reasoning(state: State, text: str, thought: str | None, content: str | None) -> None:
    assert parse(OutputReader(thinks=ReasoningSplitter(state), skip_newline=True), text) == Parsed(content, thought, ())


def test_reasoning_comes_before_calls() -> None:
    text = 'I see\n</think>\nget\n{"a": 1}'
    assert parse(reader("glm4", "inside"), text) == Parsed(None, "I see", (Call("get", '{"a": 1}'),))


@pytest.mark.parametrize(
    ("prompt", "state"),
    [
        ("<|assistant|>\n<think>", "inside"),
        ("<think>\n", "inside"),
        ("x</think>", "after"),
        ("<|assistant|>", "before"),
    ],
)
def test_where_the_prompt_leaves_the_model(prompt: str, state: State) -> None:
    assert state_after(prompt) == state


FRAGMENTS = (
    *("get_weather", "get", "python", "\n", "{", "}", '"', '{"a": 1}', "<|assistant|>", "<|assis", " ", "x", "北"),
    *("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<", "</", "\\"),
    *("<think>", "</think>", "<think", 'get\n{"a": 1}', tagged("city", "x", "days", "1"), " " * 20),
)
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


@settings(max_examples=400, deadline=None)
@given(
    texts,
    st.data(),
    st.sampled_from(["glm4", "glm45"]),
    st.sampled_from([None, "before", "inside", "after"]),
    st.booleans(),
    st.booleans(),
)
def test_how_an_output_is_cut_changes_nothing(
    text: str, data: st.DataObject, family: str, state: State | None, certain: bool, at_once: bool
) -> None:
    def reader(family: str, state: State | None) -> OutputReader:
        calls = call_reader(family, TOOLS, certain=certain, at_once=at_once)  # type: ignore[arg-type]
        return OutputReader(calls=calls, thinks=None if state is None else ReasoningSplitter(state), skip_newline=True)

    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=len(text))))
    bounds = [0, *cuts, len(text)]
    streamed = reader(family, state)
    pieces = [piece for start, end in pairwise(bounds) for piece in streamed.push(text[start:end])]
    assert joined([*pieces, *streamed.finish()]) == parse(reader(family, state), text)


@settings(max_examples=200, deadline=None)
@given(texts)
def test_text_without_calls_is_kept(text: str) -> None:
    parsed = parse(OutputReader(calls=call_reader("glm45", ())), text)
    assert parsed.calls or (parsed.content or "") == text


def test_only_what_may_be_a_name_is_held_back() -> None:
    stream = reader()
    assert stream.push("get_w") == []
    assert stream.push("on") == [Content("get_won")]
    assert stream.push(" it") == [Content(" it")]


def test_reasoning_is_held_back_for_no_more_than_its_space() -> None:
    stream = OutputReader(thinks=ReasoningSplitter("inside"))
    assert stream.push("a b ") == [Reasoning("a b")]
    assert stream.push("c") == [Reasoning(" c")]


HOSTILE: dict[str, Callable[[int], str]] = {
    "no line break": lambda n: "x" * n,
    "white space": lambda n: " " * n,
    "name and white space": lambda n: "get" + " " * n,
    "line breaks": lambda n: "\n" * n,
    "deep JSON": lambda n: "get\n" + '{"a":' * (n // 5),
    "unclosed string": lambda n: 'get\n{"a": "' + "\\" * n,
    "turns in a string": lambda n: 'get\n{"a": "' + "<|assistant|>" * (n // 13),
    "calls of glm4": lambda n: "get\n{}<|assistant|>" * (n // 19),
    "halves of a turn": lambda n: "<|assistant" * (n // 11),
    "openings": lambda n: "<tool_call>" * (n // 11),
    "unclosed calls": lambda n: "<tool_call>a<arg_key>k</arg_key><arg_value>" * (n // 43),
    "calls of glm45": lambda n: tagged("a", "1") * (n // 70),
    "long value": lambda n: "<tool_call>a<arg_key>k</arg_key><arg_value>" + "</" * (n // 2),
    "space in a call": lambda n: "<tool_call>a<arg_key>k</arg_key>" + " " * n,
    "deep value": lambda n: tagged("a", "[" * n),
    "quotes of JSON": lambda n: "get\n{" + "[" * 300 + '"\\' * (n // 2),
    "quotes in a value": lambda n: tagged("a", "[" * 300 + '"\\' * (n // 2)),
    "quotes of Python": lambda n: tagged("a", "['\\" + "'\\" * (n // 2)),
    "strings of strings": lambda n: tagged("days", '"' + '\\"' * (n // 2) + '"'),
    "closings": lambda n: "</think>" * (n // 8),
}


RING = {"anyOf": [{"$ref": "#/$defs/ring"}] * 2000}
LONG = {"$ref": "#" + "/x" * 20_000}


@pytest.mark.parametrize("defs", [{"ring": RING}, {"ring": LONG}, {"ring": {"anyOf": [RING, *[LONG] * 500]}}])
def test_a_hostile_schema_is_looked_through_once(defs: dict[str, Any]) -> None:
    tool = Tool(name="f", parameters={"anyOf": [RING, RING], "properties": {"a": RING}, "$defs": defs})
    stream = OutputReader(calls=call_reader("glm45", [tool], certain=True))
    text = tagged(*("a", "1", "b", "2") * 1000, name="f")
    start = time.process_time()
    for at in range(0, len(text), 9):
        stream.push(text[at : at + 9])
    assert time.process_time() - start < 3


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection, whose time depends on what the whole process holds."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("family", ["glm4", "glm45"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_outputs_take_linear_time(kind: str, family: str) -> None:
    """Four times as much takes about four times as long; quadratic work would take sixteen."""

    def seconds(size: int) -> float:
        text = HOSTILE[kind](size)
        stream = reader(family, "inside" if kind in ("closings", "white space") else None)
        start = time.thread_time()
        for at in range(0, len(text), 3):
            stream.push(text[at : at + 3])
        stream.finish()
        return time.thread_time() - start

    with uncollected():
        quarter = max(min(seconds(25_000) for _ in range(3)), 0.01)
        assert any(seconds(100_000) < 10 * quarter for _ in range(3))
