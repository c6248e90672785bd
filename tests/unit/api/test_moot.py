"""What asks for what is done anyway is granted, and nothing else of the kind."""

import pytest
from jsonschema import Draft202012Validator
from openai.types.chat import ParsedChatCompletionMessage, ParsedFunctionToolCall
from openai.types.chat.parsed_function_tool_call import ParsedFunction

from glm_cluster.api.inputs import EmbeddingRequest
from glm_cluster.api.moot import ANSWER, CALL, CALLED, CHAT, COMPLETION, EMBEDDING, MESSAGE, PART, RESULT
from glm_cluster.api.openai import ChatCompletionRequest, CompletionRequest
from glm_cluster.errors import InvalidRequest

BODIES = {
    ChatCompletionRequest: ({"model": "m", "messages": [{"role": "user", "content": "hi"}]}, CHAT),
    CompletionRequest: ({"model": "m", "prompt": "hi"}, COMPLETION),
    EmbeddingRequest: ({"model": "m", "input": "hi"}, EMBEDDING),
}


def example(value):
    """One of the values that are granted."""
    return {str: "any", int: 0, bool: True, object: {"a": [1]}}.get(value, value) if isinstance(value, type) else value


GRANTED = [
    (cls, body, name, value)
    for cls, (body, moot) in BODIES.items()
    for name, values in moot.items()
    for value in (None, *map(example, values))
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


def examples(moot):
    return {name: example(values[0]) if values else None for name, values in moot.items()}


def test_what_clients_note_on_an_answer_is_taken_back_with_it():
    """OpenAI's own client dumps every field, and adds what it made of them; others add their own."""
    made = {"name": "f", "arguments": "{}", **examples(CALLED)}
    call = {"id": "c", "function": made, **examples(CALL)}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "hi", **examples(PART)}], "tool_calls": [call]}
    body, _ = BODIES[ChatCompletionRequest]
    given = {**body, "messages": [*body["messages"], {**answer, **examples(MESSAGE | ANSWER)}]}
    Draft202012Validator(ChatCompletionRequest.model_json_schema()).validate(given)
    parsed = ChatCompletionRequest.parse(given).messages[1]
    call["type"] = None
    assert ChatCompletionRequest.parse(given).messages[1] == parsed
    plain = {**answer, "content": "hi", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}
    assert parsed.turn == ChatCompletionRequest.parse({**body, "messages": [plain]}).messages[0].turn
    for wrong in ({"audio": {"id": "a"}}, {"nonsense": 1}, {"tool_calls": [{**call, "nonsense": 1}]}):
        with pytest.raises(InvalidRequest, match="unsupported fields"):
            ChatCompletionRequest.parse({**body, "messages": [{**answer, **wrong}]})


def test_a_message_of_openais_parsing_client_is_taken_back():
    """What `.parse()` of the client gives is appended to the conversation."""
    function = ParsedFunction(name="f", arguments='{"a": 1}', parsed_arguments={"a": 1})
    call = ParsedFunctionToolCall(id="c", type="function", function=function, index=0)
    message = ParsedChatCompletionMessage(role="assistant", content=None, tool_calls=[call], parsed=None)
    body, _ = BODIES[ChatCompletionRequest]
    for dumped in (message.model_dump(), message.model_dump(exclude_unset=True), message.model_dump(exclude_none=True)):
        turns = [*body["messages"], dumped, {"role": "tool", "tool_call_id": "c", "content": None, "name": ""}]
        turn = ChatCompletionRequest.parse({**body, "messages": turns}).messages[1].turn
        assert turn["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


def test_it_would_ask_for_something_on_another_s_turn():
    """Pictures beside a user's question are not what a model made of it."""
    body, _ = BODIES[ChatCompletionRequest]
    for role, noted in (("user", ANSWER), ("system", ANSWER), ("user", RESULT), ("assistant", {"is_error": ()})):
        for name in noted:
            turns = [{"role": role, "content": "a", name: example(noted[name][0]) if noted[name] else True}]
            with pytest.raises(InvalidRequest, match=f"unsupported fields: messages.0.{name}"):
                ChatCompletionRequest.parse({**body, "messages": turns})
    result = ChatCompletionRequest.parse(
        {**body, "messages": [{"role": "tool", "content": "a", **examples(RESULT)}]}
    ).messages[0]
    assert result.turn == {"role": "tool", "content": "a"}


def test_a_refusal_is_what_an_answer_says():
    body, _ = BODIES[ChatCompletionRequest]
    turns = [{"role": "assistant", "content": None, "refusal": "I cannot."}]
    turn = ChatCompletionRequest.parse({**body, "messages": turns}).messages[0].turn
    assert turn == {"role": "assistant", "content": "I cannot."}
    with pytest.raises(InvalidRequest, match="refusal are an assistant's"):
        ChatCompletionRequest.parse({**body, "messages": [{"role": "user", "content": "a", "refusal": "b"}]})


def test_reasoning_comes_back_under_either_name():
    body, _ = BODIES[ChatCompletionRequest]
    for name in ("reasoning", "reasoning_content"):
        turns = [*body["messages"], {"role": "assistant", "content": None, name: "hm"}]
        turn = ChatCompletionRequest.parse({**body, "messages": turns}).messages[1].turn
        assert turn == {"role": "assistant", "content": "", "reasoning_content": "hm"}


def test_who_speaks_is_handed_to_the_template():
    body, _ = BODIES[ChatCompletionRequest]
    (message,) = ChatCompletionRequest.parse(
        {**body, "messages": [{"role": "user", "content": "", "name": "Ada L."}]}
    ).messages
    assert message.turn == {"role": "user", "content": "", "name": "Ada L."}


def test_a_stream_may_do_without_obfuscation():
    body, _ = BODIES[ChatCompletionRequest]
    asked = {**body, "stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}}
    assert ChatCompletionRequest.parse(asked).stream_options.include_usage
    with pytest.raises(InvalidRequest, match="include_obfuscation"):
        ChatCompletionRequest.parse({**asked, "stream_options": {"include_obfuscation": True}})
