"""What is long is taken or refused at a glance, and as a closer look would."""

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from glm_cluster.api import schema
from glm_cluster.api.openai import ChatCompletionRequest
from glm_cluster.api.schema import FewIds, TokenIds
from glm_cluster.errors import InvalidRequest


def verdict(adapter: TypeAdapter[list[int]], value: object) -> object:
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        return [(fault["loc"], fault["msg"]) for fault in error.errors()]


@pytest.mark.parametrize(
    "value",
    [
        [],
        [0],
        [1, 2, 3, 4, 2**63 - 1],
        [1, 2, 3, 4, 2**63],
        [1, 2, 3, 4, -1],
        [1, 2, 3, True],
        [1, 2, 3, 4.0],
        [1, 2, "3"],
        [[1]],
        (1, 2),
        "12",
        None,
    ],
)
def test_a_glance_finds_what_a_closer_look_finds(value: object, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schema, "_GLANCE", 2)
    assert verdict(TypeAdapter(TokenIds), value) == verdict(TypeAdapter(FewIds), value)


MANY = {f"x{index}": [] for index in range(100_000)}
HELLO = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        (MANY, ""),
        ({"messages": [HELLO | MANY]}, "messages.0: "),
        ({"response_format": {"type": "text"} | MANY}, "response_format: "),
        ({"stream": True, "stream_options": MANY}, "stream_options: "),
        ({"tools": [{"type": "function", "function": {"name": "f"} | MANY}]}, "tools.0.function: "),
    ],
)
def test_of_many_unknown_fields_some_are_named(fields: dict[str, object], where: str, monkeypatch: pytest.MonkeyPatch):
    """Pydantic would describe each: it has but one fault to tell."""
    described: list[int] = []

    def refusal(details: list[ErrorDetails]) -> InvalidRequest:
        described.append(len(details))
        return told(details)

    told = schema._refusal
    monkeypatch.setattr(schema, "_refusal", refusal)
    with pytest.raises(InvalidRequest) as caught:
        ChatCompletionRequest.parse({"model": "m", "messages": [HELLO]} | fields)
    assert caught.value.message.startswith(f"{where}unsupported fields: x0, x1, ")
    assert caught.value.message.endswith("x15 and more; leave them out")
    assert described == [1]


def test_few_unknown_fields_are_each_named():
    with pytest.raises(InvalidRequest, match=r"unsupported fields: audio, store\.x; leave them out") as caught:
        ChatCompletionRequest.parse({"model": "m", "messages": [HELLO], "audio": 1, "store.x": 2})
    assert caught.value.param == "audio"


def test_variables_are_counted_before_they_are_looked_at():
    with pytest.raises(InvalidRequest) as caught:
        ChatCompletionRequest.parse({"model": "m", "messages": [HELLO], "chat_template_kwargs": MANY})
    assert caught.value.message == "chat_template_kwargs: Input should have at most 32 items"
