"""The official Python client of OpenAI."""

from collections.abc import Iterator
from typing import Literal

import openai
import pydantic
import pytest


class Weather(pydantic.BaseModel):
    """What a tool is asked."""

    city: Literal["Paris", "Rome"]


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_models_are_listed_and_looked_up(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["demo", "demo-vectors"]
    assert client.models.retrieve("demo").owned_by == "glm_cluster"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("owner/name")
    assert caught.value.code == "model_not_found"


def test_chat_whole_and_streamed_are_the_same(client: openai.OpenAI, question):
    asked = {"model": "demo", "messages": question, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    assert "Paris" in whole.choices[0].message.content
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    with client.chat.completions.stream(**asked) as events:
        assert events.get_final_completion().choices[0].message.content == text


def test_several_choices_with_a_seed_are_those_of_the_next_time(client: openai.OpenAI, question):
    asked = {"model": "demo", "messages": question, "temperature": 1, "seed": 5, "n": 3, "max_tokens": 12}
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) > 1
    assert [choice.index for choice in first.choices] == [0, 1, 2]


def test_log_probabilities_are_there_for_each_token(client: openai.OpenAI, question):
    asked = {"model": "demo", "messages": question, "temperature": 0, "max_tokens": 5, "logprobs": True}
    answer = client.chat.completions.create(**asked, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) in (answer.usage.completion_tokens, answer.usage.completion_tokens - 1)  # a stop is not shown
    for token in content:
        assert [other.logprob for other in token.top_logprobs] == sorted(
            (other.logprob for other in token.top_logprobs), reverse=True
        )
        assert token.logprob == token.top_logprobs[0].logprob  # greedy
        assert token.logprob <= 0


def test_a_parsed_call_goes_back_into_the_conversation(client: openai.OpenAI, question):
    """As agents' loops append it: with what the client made of the arguments, and when streamed with an index too."""
    tools = [openai.pydantic_function_tool(Weather)]
    asked = {"model": "demo", "tools": tools, "temperature": 0, "max_tokens": 100}
    demand = {**asked, "messages": question, "tool_choice": "required", "parallel_tool_calls": False}
    with client.chat.completions.stream(**demand) as events:
        streamed = events.get_final_completion()
    for answer in (client.chat.completions.parse(**demand), streamed):
        message = answer.choices[0].message
        (call,) = message.tool_calls
        assert isinstance(call.function.parsed_arguments, Weather)
        turns = [*question, message, {"role": "tool", "tool_call_id": call.id, "content": "22 degrees"}]
        assert client.chat.completions.create(**asked, messages=turns).usage.completion_tokens > 0


def test_completions_take_lists_stops_and_echo(client: openai.OpenAI):
    prompts = ["The capital of France is", "The capital of Italy is"]
    answer = client.completions.create(model="demo", prompt=prompts, temperature=0, max_tokens=8, stop=["."])
    assert ["Paris" in answer.choices[0].text, "Rome" in answer.choices[1].text] == [True, True]
    assert not any("." in choice.text for choice in answer.choices)
    echoed = client.completions.create(
        model="demo", prompt=prompts[0], temperature=0, max_tokens=1, echo=True, logprobs=1
    )
    assert echoed.choices[0].text.startswith(prompts[0])
    assert echoed.choices[0].logprobs.token_logprobs[0] is None


def test_embeddings_have_a_direction(client: openai.OpenAI):
    answer = client.embeddings.create(model="demo-vectors", input=["a cat", "a cat", "thermodynamics"])
    cat, again, other = (item.embedding for item in answer.data)
    assert sum(a * b for a, b in zip(cat, again, strict=True)) == pytest.approx(1, abs=1e-4)
    assert sum(a * b for a, b in zip(cat, other, strict=True)) < 0.99


def test_errors_are_the_clients_own(client: openai.OpenAI, question):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=question, temperature=3)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=question)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "word " * 2000}])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
