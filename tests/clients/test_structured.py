"""Answers of a form, asked for with the official Python client of OpenAI, and over gRPC."""

import json
import re
from collections.abc import Iterator
from typing import Literal

import grpc
import openai
import pydantic
import pytest
from support.cluster import RunningCluster

from glm_cluster.api.proto import glm_pb2, glm_pb2_grpc


class City(pydantic.BaseModel):
    """Bounded, so that the demo model ends it however it rambles."""

    name: str = pydantic.Field(max_length=20)
    continent: Literal["Africa", "America", "Asia", "Europe", "Oceania"]
    inhabitants: int = pydantic.Field(ge=0, le=99_999_999)
    rivers: list[Literal["Seine", "Thames", "Danube"]] = pydantic.Field(max_length=2)


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_a_type_comes_back_as_its_value(client: openai.OpenAI, question):
    asked = {"model": "demo", "messages": question, "temperature": 1, "seed": 3, "n": 3, "max_tokens": 200}
    parsed = client.chat.completions.parse(**asked, response_format=City)
    assert [choice.finish_reason for choice in parsed.choices] == ["stop"] * 3
    assert all(isinstance(choice.message.parsed, City) for choice in parsed.choices)
    texts = [""] * 3
    with client.chat.completions.stream(**asked, response_format=City) as events:
        for event in events:
            if event.type == "chunk":
                for choice in event.chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in parsed.choices]


def test_every_kind_over_both_wires(client: openai.OpenAI, cluster: RunningCluster):
    schema = json.dumps(City.model_json_schema())
    forms = [
        {"json": schema},
        {"regex": r"[a-f]{4}-\d{2}"},
        {"choice": ["yes", "no"]},
        {"grammar": 'start: "a" /b{1,3}/'},
    ]
    texts = []
    for form in forms:
        asked = {"model": "demo", "prompt": "Answer: ", "temperature": 0, "max_tokens": 200}
        texts.append(client.completions.create(**asked, extra_body={"structured_outputs": form}).choices[0].text)
    assert City.model_validate_json(texts[0])
    assert re.fullmatch(r"[a-f]{4}-\d{2}", texts[1])
    assert texts[2] in ("yes", "no")
    assert re.fullmatch("ab{1,3}", texts[3])
    with grpc.insecure_channel(cluster.grpc_address) as channel:
        stub = glm_pb2_grpc.GlmStub(channel)
        for form, text in zip(forms, texts, strict=True):
            request = glm_pb2.GenerateRequest(
                model="demo",
                text="Answer: ",
                sampling=glm_pb2.Sampling(temperature=0),
                max_tokens=200,
                structured_outputs={"choice": {"texts": form["choice"]}} if "choice" in form else form,
            )
            assert "".join(chunk.text for chunk in stub.Generate(request)) == text


def test_what_cannot_be_enforced_is_refused(client: openai.OpenAI, question):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"uniqueItems": True}, "strict": True}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        client.chat.completions.create(model="demo", messages=question, response_format=form)
    assert caught.value.param == "response_format"
