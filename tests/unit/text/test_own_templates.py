"""Our own templates write the prompts that the published ones do."""

import json
from pathlib import Path
from typing import Any

import pytest

from glm_cluster.errors import InvalidRequest
from glm_cluster.text.chat import ChatTemplate
from glm_cluster.text.own_templates import fitting_template, own_template, served_template
from glm_cluster.text.tokenizer import Plain, Special, Tokenizer

PUBLISHED = {
    "glm-4-9b-chat.jinja": "glm4",
    "GLM-4-0414.jinja": "glm4-0414",
    "GLM-4.6.jinja": "glm45",
    "GLM-4.7-Flash.jinja": "glm47",
}
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "查询天气", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
BUILT_IN = [{"type": name} for name in ("python", "simple_browser", "cogview")]


def says(role: str, content: object, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def called(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


QUESTION = [says("system", "Be brief."), says("user", "a"), says("assistant", " b \n"), says("user", "c")]
GLM4_CALLS = [
    *QUESTION,
    says("assistant", "{}", metadata="now"),
    says("observation", "12:00"),
    says("assistant", '{"city": "北京"}', metadata="get_weather"),
    says("observation", "22C", metadata="weather_result"),
]
NATIVE_CALLS = [
    *QUESTION[:-1],
    says("assistant", "<think>\nold\n</think>\nb"),
    says("user", "c"),
    says("assistant", "", tool_calls=[called("now"), called("get_weather", city="北京", days=[1, None])]),
    says("tool", "12:00"),
    says("tool", "22C"),
    says("assistant", "It is", reasoning_content=" new \n"),
    says("assistant", "<think>\nx\n</think>\ny"),
]
PARTS = [{"type": "text", "text": "a\n"}, {"type": "text", "text": "b"}]
ODD_CALLS = [
    says("tool", "before all"),
    says("system", PARTS),
    says("user", PARTS),
    says("assistant", "</think> a", reasoning_content=""),
    says("assistant", None, reasoning_content="hm", tool_calls=[called("now"), {"name": "now", "arguments": {}}]),
    says("tool", [{"output": "12:00"}, {"output": "<b>"}]),
    says("tool", "next"),
    says("tool", ["last"]),
    says("assistant", "<think>one</think>two</think>\n\nthree"),
    says("system", "late"),
    says("assistant", "", tool_calls=[called("get_weather", city=" 北京\n", o={"x": None, "é": "<"}, f=1.5, s="12")]),
]
CASES: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = [
    *((name, QUESTION, {}) for name in PUBLISHED),
    ("glm-4-9b-chat.jinja", [says("system", None, tools=TOOLS + BUILT_IN), *GLM4_CALLS], {}),
    ("glm-4-9b-chat.jinja", [says("system", "both", tools=BUILT_IN), *QUESTION], {}),
    ("GLM-4-0414.jinja", [*GLM4_CALLS, says("system", "late")], {"tools": TOOLS}),
    *((name, NATIVE_CALLS, {"tools": TOOLS}) for name in ("GLM-4.6.jinja", "GLM-4.7-Flash.jinja")),
    *((name, QUESTION, {"enable_thinking": False}) for name in ("GLM-4.6.jinja", "GLM-4.7-Flash.jinja")),
    ("GLM-4.6.jinja", [says("user", "a/nothink")], {"enable_thinking": False}),
    ("GLM-4.7-Flash.jinja", NATIVE_CALLS, {"clear_thinking": False}),
    *((name, ODD_CALLS, {"clear_thinking": False}) for name in ("GLM-4.6.jinja", "GLM-4.7-Flash.jinja")),
    *((name, [*ODD_CALLS, says("user", "d")], {}) for name in ("GLM-4.6.jinja", "GLM-4.7-Flash.jinja")),
    *((name, [says("user", "a")], {"enable_thinking": True}) for name in ("GLM-4.6.jinja", "GLM-4.7-Flash.jinja")),
]


def rendered(source: str, messages: list[dict[str, Any]], prompt: bool, variables: dict[str, Any]) -> str:
    template = ChatTemplate(source, {}, {})
    return template.render_text(messages, add_generation_prompt=prompt, variables=variables)


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize(("name", "messages", "variables"), CASES)
def test_same_prompt_as_the_published(
    shared_data: Path, name: str, messages: list[dict[str, Any]], variables: dict[str, Any], prompt: bool
) -> None:
    published = (shared_data / "templates" / name).read_text(encoding="utf-8")
    own = own_template(PUBLISHED[name])  # type: ignore[arg-type]
    assert rendered(own, messages, prompt, variables) == rendered(published, messages, prompt, variables)


def test_vectors(shared_data: Path) -> None:
    vectors = json.loads((shared_data / "vectors" / "chat_render.json").read_text(encoding="utf-8"))
    known = [vector for vector in vectors if vector["template"] in PUBLISHED]
    assert known
    for vector in known:
        variables = dict(vector["input"])
        messages, prompt = variables.pop("messages"), variables.pop("add_generation_prompt")
        source = own_template(PUBLISHED[vector["template"]])  # type: ignore[arg-type]
        assert rendered(source, messages, prompt, variables) == vector["prompt"]


def test_the_format_is_told_by_the_control_tokens(shared_data: Path, glm4: Tokenizer) -> None:
    glm45 = json.loads((shared_data / "tokenizer" / "special_tokens_glm45.json").read_text(encoding="utf-8"))
    assert fitting_template(glm4.special_ids, model_type="chatglm") == "glm4"
    assert fitting_template(glm4.special_ids, model_type="glm4") == "glm4-0414"
    assert fitting_template(glm45, model_type="glm4_moe") == "glm45"
    assert fitting_template(glm45, model_type="glm4_moe", tool_parser="glm47") == "glm47"
    assert fitting_template(["<|im_start|>", "<|im_end|>"], model_type="glm") is None


def test_only_a_checkpoint_without_a_template_gets_ours(glm4: Tokenizer, tiny: Tokenizer, tmp_path: Path) -> None:
    ours = served_template(tmp_path, glm4, model_type="glm4")
    assert ours.source == own_template("glm4-0414")
    assert ours.render([says("user", "a")])[0] == Special(glm4.special_ids["[gMASK]"])
    with pytest.raises(InvalidRequest, match="no chat template"):
        served_template(tmp_path, tiny, model_type="glm4").render([says("user", "a")])
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    assert served_template(tmp_path, glm4, model_type="glm4").render([says("user", "a")]) == (Plain("a"),)
