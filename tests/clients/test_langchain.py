"""LangChain's OpenAI integration."""

import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


@pytest.fixture
def chat(url: str) -> ChatOpenAI:
    return ChatOpenAI(model="demo", base_url=url, api_key="none", temperature=0, max_tokens=12, max_retries=0)


def test_invoked_and_streamed_are_the_same(chat: ChatOpenAI, question):
    whole = chat.invoke(question)
    assert "Paris" in whole.content
    assert whole.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.content for chunk in chat.stream(question)) == whole.content


async def test_many_at_once_are_as_one_by_one(chat: ChatOpenAI, question):
    alone = chat.invoke(question).content
    assert [message.content for message in await chat.abatch([question] * 4)] == [alone] * 4


def test_log_probabilities_are_handed_on(chat: ChatOpenAI, question):
    answer = chat.bind(logprobs=True).invoke(question)
    assert all(token["logprob"] <= 0 for token in answer.response_metadata["logprobs"]["content"])


def test_a_conversation_that_exceeds_the_context_is_recognised(chat: ChatOpenAI):
    with pytest.raises(ContextOverflowError):
        chat.invoke("word " * 2000)


def test_embeddings_of_token_ids(url: str):
    """This client sends ids of OpenAI's vocabulary unless told not to."""
    vectors = OpenAIEmbeddings(model="demo-vectors", base_url=url, api_key="none", check_embedding_ctx_length=False)
    assert [len(vector) for vector in vectors.embed_documents(["a", "b"])] == [576, 576]
