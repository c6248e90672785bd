"""Pydantic AI's agents, over its OpenAI chat model."""

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

QUESTION = "What is the capital of France? Answer in one word."


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)


@pytest.fixture
def model(url: str) -> OpenAIChatModel:
    return OpenAIChatModel("demo", provider=OpenAIProvider(base_url=url, api_key="none"))


async def test_run_and_streamed_are_the_same(model: OpenAIChatModel):
    agent = Agent(model, model_settings={"temperature": 0, "max_tokens": 12})
    whole = await agent.run(QUESTION)
    assert "Paris" in whole.output
    async with agent.run_stream(QUESTION) as stream:
        *_, text = [text async for text in stream.stream_text()]
    assert text == whole.output


@pytest.mark.parametrize("output", [NativeOutput(City), City], ids=["schema", "tool"])
async def test_the_answer_is_of_the_type(model: OpenAIChatModel, output):
    agent = Agent(model, output_type=output, retries=0, model_settings={"temperature": 0, "max_tokens": 100})
    assert isinstance((await agent.run(QUESTION)).output, City)
