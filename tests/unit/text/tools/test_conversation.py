"""Conversations in OpenAI's form become what each template asks for."""

import json
from pathlib import Path
from typing import Any

import pytest

from glm_cluster.errors import InvalidRequest
from glm_cluster.text.chat import ChatTemplate
from glm_cluster.text.own_templates import OwnTemplate, own_template
from glm_cluster.text.tools.conversation import conversation
from glm_cluster.text.tools.dialect import Dialect, dialect_of
from glm_cluster.text.tools.tool import Tool

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
SPECIALS = ("<|user|>", "<|assistant|>", "<|observation|>")
WEATHER = Tool(
    name="get_weather",
    description="查询天气 (get weather)",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
PYTHON = Tool(name="python", built_in=True)


def dialect(source: str, **settings: Any) -> Dialect:
    return dialect_of(source, SPECIALS, **settings)


def own(name: OwnTemplate) -> Dialect:
    return dialect(own_template(name))


def call(id: str, name: str = "get_weather", arguments: str = '{"city": "北京"}') -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def asked(*calls: dict[str, Any], content: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def result(id: str, content: str = "22C") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


USER = {"role": "user", "content": "weather?"}


def rendered(messages: list[dict[str, Any]], tools: list[Tool], source: str) -> str:
    put = conversation(messages, tools, dialect(source))
    template = ChatTemplate(source, {}, {})
    return template.render_text(put.messages, add_generation_prompt=True, variables=put.variables)


def test_a_participant_s_name_reaches_the_template() -> None:
    source = (
        "{% for m in messages %}{{ m.name }}:{{ m.content }}{{ m.tool_calls | length if m.tool_calls }};{% endfor %}"
    )
    messages = [{**USER, "name": "Ada"}, {**asked(call("1")), "name": "Bot"}]
    assert rendered(messages, [], source) == "Ada:weather?;Bot:1;"


def test_dialects_of_the_published_templates(shared_data: Path) -> None:
    def told(name: str) -> Dialect:
        return dialect((shared_data / "templates" / name).read_text(encoding="utf-8"))

    glm45 = Dialect(family="glm45", thinks=True, tools="variable", calls="tool_calls", result_role="tool")
    assert told("glm-4-9b-chat.jinja") == own("glm4")
    assert told("GLM-4-0414.jinja") == own("glm4-0414")
    assert told("GLM-4.6.jinja") == own("glm45") == glm45
    assert told("GLM-4.7-Flash.jinja") == own("glm47")
    assert own("glm47").family == "glm47"
    assert told("GLM-Z1-0414.jinja") == Dialect(
        family="glm4", thinks=True, tools="variable", calls="metadata", result_role="observation"
    )
    spelled_out = Dialect(family="glm4", thinks=False, tools="text", calls="text", result_role="user")
    assert told("glm-edge-chat.jinja") == dialect(CHATML) == spelled_out


def test_glm4_has_tools_in_a_message_and_0414_as_a_variable() -> None:
    message = Dialect(family="glm4", thinks=False, tools="message", calls="metadata", result_role="observation")
    assert own("glm4") == message
    assert own("glm4-0414").tools == "variable"


def test_settings_go_before_what_the_template_says() -> None:
    assert dialect(CHATML, tool_parser="glm47", reasoning_parser="think").family == "glm47"
    assert dialect(CHATML, reasoning_parser="think").thinks
    off = dialect(own_template("glm45"), tool_parser="none", reasoning_parser="none")
    assert (off.family, off.thinks) == (None, False)


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("glm-4-9b-chat.jinja", "glm4"),
        ("GLM-4-0414.jinja", "glm4-0414"),
        ("GLM-4.6.jinja", "glm45"),
        ("GLM-4.7-Flash.jinja", "glm47"),
    ],
)
def test_vectors_go_through(shared_data: Path, name: str, template: OwnTemplate) -> None:
    """Messages in GLM's own form are left as they are; tools of the vector enter where the template wants them."""
    vectors = json.loads((shared_data / "vectors" / "chat_render.json").read_text(encoding="utf-8"))
    published = (shared_data / "templates" / name).read_text(encoding="utf-8")
    seen = 0
    for vector in vectors:
        given = dict(vector["input"])
        if vector["template"] != name or "IGNORED" in vector["source"]:
            continue
        messages, prompt = given.pop("messages"), given.pop("add_generation_prompt")
        tools = [WEATHER] if given.pop("tools", None) else []
        put = conversation(messages, tools, dialect(published))
        for source in (published, own_template(template)):
            text = ChatTemplate(source, {}, {}).render_text(
                put.messages, add_generation_prompt=prompt, variables={**given, **put.variables}
            )
            assert text == vector["prompt"]
        seen += 1
    assert seen


def test_the_vector_whose_tools_were_ignored_has_them_in_a_message() -> None:
    put = conversation([USER], [WEATHER, PYTHON], own("glm4"))
    assert put.variables == {}
    assert put.messages[0] == {
        "role": "system",
        "content": None,
        "tools": [WEATHER.for_template(), {"type": "python"}],
    }


def test_calls_and_results_of_glm4() -> None:
    messages = [USER, asked(call("1"), call("2", "python", '{"code": "1+1\\n"}'), content="ok"), result("1", "")]
    assert conversation(messages, [], own("glm4")).messages == [
        USER,
        {"role": "assistant", "content": "ok"},
        {"role": "assistant", "metadata": "get_weather", "content": '{"city": "北京"}'},
        {"role": "assistant", "metadata": "python", "content": "1+1\n"},
        {"role": "observation", "content": " "},
    ]


@pytest.mark.parametrize("arguments", ['{"code": 1}', '{"code": "", "x": 1}', "[]", "1+"])
def test_arguments_that_are_no_body_go_in_as_they_are(arguments: str) -> None:
    (turn,) = conversation([asked(call("1", "python", arguments))], [], own("glm4")).messages
    assert turn["content"] == arguments


def test_what_glm4_wrote_comes_back_to_it_as_it_was() -> None:
    """So the next prompt begins with the last one and its answer."""
    source = own_template("glm4")
    before = rendered([USER], [WEATHER], source)
    after = rendered([USER, asked(call("1"), content="ok"), result("1")], [WEATHER], source)
    written = '\nok<|assistant|>get_weather\n{"city": "北京"}'
    assert after == before + written + "<|observation|>\n22C<|assistant|>"


def test_calls_and_results_of_glm45() -> None:
    messages = [USER, {**asked(call("1"), call("2", "now", "")), "reasoning_content": "hm"}, result("1")]
    _, turn, observation = conversation(messages, [WEATHER], own("glm45")).messages
    assert turn["content"] == ""
    assert turn["reasoning_content"] == "hm"
    assert [one["function"]["arguments"] for one in turn["tool_calls"]] == [{"city": "北京"}, {}]
    assert observation == {"role": "tool", "content": "22C"}
    assert "<think>hm</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>" in rendered(
        messages, [WEATHER], own_template("glm45")
    )


def test_reasoning_that_is_empty_says_that_there_was_none() -> None:
    """Templates look for `</think>` in the content of a message that says nothing of reasoning."""
    said = {**asked(call("1"), content="a</think>b"), "reasoning_content": ""}
    assert "<think></think>\na</think>b\n<tool_call>" in rendered([USER, said], [], own_template("glm45"))


@pytest.mark.parametrize("arguments", ["[]", "{", "1", '"a"'])
def test_arguments_of_glm45_must_be_an_object(arguments: str) -> None:
    with pytest.raises(InvalidRequest, match="JSON object"):
        conversation([USER, asked(call("1", arguments=arguments))], [], own("glm45"))


def test_results_come_in_the_order_of_the_calls() -> None:
    messages = [USER, asked(call("a"), call("b")), result("b", "2"), result("a", "1")]
    put = conversation(messages, [], own("glm4"))
    assert [turn["content"] for turn in put.messages[-2:]] == ["1", "2"]


def test_a_result_of_no_call_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'c' is that of no call"):
        conversation([USER, asked(call("a")), result("c")], [], own("glm4"))


def test_observations_are_results_too() -> None:
    messages = [USER, {"role": "observation", "content": "x"}]
    assert conversation(messages, [], own("glm45")).messages[-1] == {"role": "tool", "content": "x"}
    assert conversation(messages, [], own("glm4")).messages[-1] == {"role": "observation", "content": "x"}


def test_a_template_without_tools_has_them_in_words() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, USER, asked(call("1")), result("1")]
    system, user, called, answered = conversation(messages, [WEATHER], dialect(CHATML)).messages
    assert system["role"] == "system"
    assert system["content"].startswith("Be brief.\n\nYou can call the tools below.")
    assert '"查询天气 (get weather)"' in system["content"]
    assert user == USER
    assert called == {"role": "assistant", "content": 'get_weather\n{"city": "北京"}'}
    assert answered == {"role": "user", "content": "Result of get_weather:\n22C"}
    assert conversation([USER], [WEATHER], dialect(CHATML)).messages[0]["role"] == "system"


@pytest.mark.parametrize("name", ["glm4-0414", "glm45", "glm47"])
def test_other_models_know_all_tools_as_functions(name: OwnTemplate) -> None:
    (function,) = own(name).understood([PYTHON])
    assert not function.built_in
    assert function.body_key is None
    assert function.schema["required"] == ["code"]
    assert '"code"' in rendered([USER], [PYTHON], own_template(name))
    assert own("glm4").understood([PYTHON]) == (PYTHON,)
