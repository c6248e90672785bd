"""LiteLLM, as a gateway calls us."""

import litellm
import pytest


@pytest.fixture
def asked(url: str, question) -> dict[str, object]:
    return {
        "model": "openai/demo",
        "messages": question,
        "api_base": url,
        "api_key": "none",
        "temperature": 0,
        "max_tokens": 12,
        "num_retries": 0,
    }


def test_chat_whole_and_streamed_are_the_same(asked):
    whole = litellm.completion(**asked)
    assert "Paris" in whole.choices[0].message.content
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    text = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True))
    assert text == whole.choices[0].message.content


def test_embeddings(url: str):
    answer = litellm.embedding(model="openai/demo-vectors", input=["a", "b"], api_base=url, api_key="none")
    assert [len(item["embedding"]) for item in answer.data] == [576, 576]


def test_errors_are_litellms_own(asked):
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**asked, "model": "openai/gpt-4"})
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**{**asked, "max_tokens": 5000})
