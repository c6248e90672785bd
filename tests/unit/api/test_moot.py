"""What asks for what is done anyway is granted, and nothing else of the kind."""

import pytest
from jsonschema import Draft202012Validator

from glm_cluster.api.inputs import EmbeddingRequest
from glm_cluster.api.moot import CHAT, COMPLETION, EMBEDDING, MESSAGE
from glm_cluster.api.openai import ChatCompletionRequest, CompletionRequest
from glm_cluster.errors import InvalidRequest

BODIES = {
    ChatCompletionRequest: ({"model": "m", "messages": [{"role": "user", "content": "hi"}]}, CHAT),
    CompletionRequest: ({"model": "m", "prompt": "hi"}, COMPLETION),
    EmbeddingRequest: ({"model": "m", "input": "hi"}, EMBEDDING),
}
GRANTED = [
    (cls, body, name, value)
    for cls, (body, moot) in BODIES.items()
    for name, values in moot.items()
    for value in (None, *("any" if one is str else one for one in values))
]


@pytest.mark.parametrize(("cls", "body", "name", "value"), GRANTED)
def test_it_changes_nothing(cls, body, name, value):
    assert cls.parse({**body, name: value}) == cls.parse(body)
    Draft202012Validator(cls.model_json_schema()).validate({**body, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("store", True),
        ("store", 0),
        ("service_tier", "flex"),
        ("modalities", ["text", "audio"]),
        ("metadata", {"a": "b"}),
        ("length_penalty", True),
        ("skip_special_tokens", False),
        ("prediction", {"type": "content", "content": "x"}),
        ("prompt_cache_key", 5),
        ("prompt_cache_retention", "24h"),
    ],
)
def test_what_is_not_there_is_refused_by_name(name, value):
    body, _ = BODIES[ChatCompletionRequest]
    with pytest.raises(InvalidRequest, match=f"unsupported fields: {name}") as caught:
        ChatCompletionRequest.parse({**body, name: value})
    assert caught.value.param == name
    assert not Draft202012Validator(ChatCompletionRequest.model_json_schema()).is_valid({**body, name: value})


def test_all_choices_may_be_the_best():
    """Some clients always say so."""
    body, _ = BODIES[CompletionRequest]
    assert CompletionRequest.parse({**body, "n": 2, "best_of": 2}).n == 2
    assert CompletionRequest.parse({**body, "best_of": 1}).n == 1
    with pytest.raises(InvalidRequest, match="best_of"):
        CompletionRequest.parse({**body, "n": 2, "best_of": 3})


def test_no_field_is_both_moot_and_read():
    for cls, (_, moot) in BODIES.items():
        assert not moot.keys() & cls.model_fields.keys()


def test_an_answer_of_openais_is_taken_back():
    """Its client dumps every field of a message."""
    answer = {"role": "assistant", "content": "hi", "refusal": None, "audio": None, "function_call": None}
    body, _ = BODIES[ChatCompletionRequest]
    turns = [*body["messages"], {**answer, **{name: values[0] for name, values in MESSAGE.items()}, "tool_calls": None}]
    assert ChatCompletionRequest.parse({**body, "messages": turns}).messages[1].text == "hi"
    with pytest.raises(InvalidRequest, match=r"messages\.1\.annotations"):
        ChatCompletionRequest.parse({**body, "messages": [*body["messages"], {**turns[1], "annotations": [1]}]})


def test_a_stream_may_do_without_obfuscation():
    body, _ = BODIES[ChatCompletionRequest]
    asked = {**body, "stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}}
    assert ChatCompletionRequest.parse(asked).stream_options.include_usage
    with pytest.raises(InvalidRequest, match="include_obfuscation"):
        ChatCompletionRequest.parse({**asked, "stream_options": {"include_obfuscation": True}})
