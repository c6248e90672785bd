"""Half of the schemas through a cluster's front, strict and streamed: both of two sampled choices end and keep each."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from support.cluster import RunningCluster
from support.forms import PARTS, Form, forms

pytestmark = [pytest.mark.demo, pytest.mark.cluster]
CHOICES = 2
AT_ONCE = 32
MOST_TOKENS = 1900


@pytest.fixture(scope="module")
def cluster(demo_directory: Path) -> Iterator[RunningCluster]:
    settings = {"model": str(demo_directory), "device": "cpu", "max_model_len": 2048, "kv_cache_bytes": 1 << 30}
    running = RunningCluster({"models": [{**settings, "model_name": "demo"}]})
    yield running
    running.close()


@pytest.fixture
async def client(cluster: RunningCluster) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{cluster.http_url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=570) as client:
        yield client


async def streamed(client: openai.AsyncOpenAI, form: Form) -> tuple[list[str], list[str | None], int]:
    """Text and end of each choice, and the tokens that all took."""
    name = re.sub(r"[^a-zA-Z0-9_-]", "_", form.name)[-64:]
    stream = await client.chat.completions.create(
        model="demo",
        messages=form.question,
        response_format={"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": form.bounded}},
        max_tokens=MOST_TOKENS,
        temperature=0.8,
        frequency_penalty=form.frequency_penalty,
        seed=7,
        n=CHOICES,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, ends, num_tokens = [""] * CHOICES, [None] * CHOICES, 0
    async for chunk in stream:
        num_tokens = chunk.usage.completion_tokens if chunk.usage else num_tokens
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    return texts, ends, num_tokens


@pytest.mark.parametrize("part", range(0, PARTS, 2))
async def test_every_choice_ends_and_keeps_its_schema(
    client: openai.AsyncOpenAI, part: int, record_figures: Callable[[dict[str, Any]], None]
) -> None:
    gate, asked = asyncio.Semaphore(AT_ONCE), forms(part)

    async def one(form: Form) -> tuple[list[str], list[str | None], int]:
        async with gate:
            return await streamed(client, form)

    answers = await asyncio.gather(*map(one, asked))
    unended = [form.name for form, (_, ends, _) in zip(asked, answers, strict=True) if set(ends) != {"stop"}]
    assert unended == []
    for form, (texts, _, _) in zip(asked, answers, strict=True):
        for text in texts:
            form.check(text)
    num_tokens = sum(count for *_, count in answers)
    record_figures({"streamed answers": CHOICES * len(asked), "streamed tokens": num_tokens})
