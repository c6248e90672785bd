"""A template is told what it asks for, and what it cannot be told is done without it or refused."""

import pytest

from glm_cluster.api.openai import ChatCompletionRequest
from glm_cluster.api.thinking import Thinking, told
from glm_cluster.api.tokenization import TokenizeRequest
from glm_cluster.errors import InvalidRequest
from glm_cluster.text.chat import ChatTemplate

OFF, ON = {"enable_thinking": False}, {"enable_thinking": True}


def template(*asks_for: str) -> ChatTemplate:
    looks = "".join(f"{{% if {name} %}}{name}{{% endif %}}" for name in asks_for)
    return ChatTemplate(looks + "{% for m in messages %}{{ m.content }}{% endfor %}", {}, {})


@pytest.mark.parametrize(
    ("asks_for", "none", "medium"),
    [
        ((), {}, {}),
        (("enable_thinking",), OFF, {}),
        (("reasoning_effort",), {"reasoning_effort": "none"}, {"reasoning_effort": "medium"}),
        (("enable_thinking", "reasoning_effort"), OFF | {"reasoning_effort": "none"}, {"reasoning_effort": "medium"}),
    ],
)
def test_efforts_that_every_model_knows(asks_for, none, medium):
    without, usual = (told(template(*asks_for), {}, effort, thinks=True) for effort in ("none", "medium"))
    assert (without.variables, usual.variables) == (none, medium)
    assert (without.closes, usual.closes) == ("enable_thinking" not in asks_for, False)


def test_efforts_that_a_template_has_to_ask_for():
    assert told(template("reasoning_effort"), {}, "high", thinks=True).variables == {"reasoning_effort": "high"}
    for one in (template(), template("enable_thinking")):
        with pytest.raises(InvalidRequest, match="'none'") as caught:
            told(one, {}, "high", thinks=True)
        assert caught.value.param == "reasoning_effort"


@pytest.mark.parametrize("thinks", [True, False])
def test_a_switch_is_handed_to_the_template_that_has_one(thinks):
    for wish in (ON, OFF):
        found = told(template("enable_thinking"), wish, None, thinks=thinks)
        assert (found.variables, found.closes) == (wish, False)


def test_without_a_switch_the_wish_is_kept_where_it_can_be():
    """Some clients always say so."""
    for thinks in (True, False):
        found = told(template(), OFF, None, thinks=thinks)
        assert (found.variables, found.closes) == ({}, True)
    found = told(template(), ON, None, thinks=True)
    assert (found.variables, found.closes) == ({}, False)
    with pytest.raises(InvalidRequest, match="asks for no enable_thinking"):
        told(template(), ON, None, thinks=False)
    with pytest.raises(InvalidRequest, match="asks for no enable_thinking"):
        told(template(), {"enable_thinking": "no"}, None, thinks=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_effort": "none", "thinking": {"type": "disabled"}},
        {"reasoning_effort": "none", "chat_template_kwargs": OFF},
        {"thinking": {"type": "enabled"}, "chat_template_kwargs": OFF},
    ],
)
def test_it_is_said_once(fields):
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}], **fields}
    for kind in (ChatCompletionRequest, TokenizeRequest):
        with pytest.raises(InvalidRequest, match="excludes enable_thinking"):
            kind.parse(body)


def test_zais_way_is_the_templates():
    assert Thinking(type="disabled").variables == OFF
    assert Thinking(type="enabled", clear_thinking=False).variables == ON | {"clear_thinking": False}
