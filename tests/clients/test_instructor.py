"""Instructor: answers of a type, by a response format and by a call that is forced."""

import instructor
import openai
import pytest
from pydantic import BaseModel, Field


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    is_capital: bool


@pytest.mark.parametrize("mode", [instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS])
def test_the_answer_is_of_the_type(url: str, question, mode: instructor.Mode):
    """Whatever a small model says, it says it in the right shape: no second attempt is needed."""
    client = instructor.from_openai(openai.OpenAI(base_url=url, api_key="none", max_retries=0), mode=mode)
    city = client.chat.completions.create(
        model="demo", messages=question, response_model=City, temperature=0, max_tokens=100, max_retries=0
    )
    assert isinstance(city, City)
