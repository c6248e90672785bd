"""Server-sent events of several dialects, from a real socket."""

import json
import socket

import pytest

from glm_cluster.bench.http_client import open_http_client
from glm_cluster.bench.order import Order
from glm_cluster.errors import ConfigError, EngineUnavailable

ORDER = Order(max_tokens=5)


def event(text="", **fields):
    return json.dumps({"choices": [{"text": text, **fields}]})


USAGE = json.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})


async def ask(server, order=ORDER, prompt=(5, 6)):
    async with open_http_client(server.url, order) as client:
        return await client.ask(prompt, 0.0)


async def test_arrivals_are_events_with_tokens_and_the_count_is_the_servers(server) -> None:
    server.events = [event("a"), event("bc"), event("", finish_reason="length"), USAGE, "[DONE]"]
    timing = await ask(server)
    assert timing.error is None
    assert len(timing.arrivals_s) == 2
    assert list(timing.arrivals_s) == sorted(timing.arrivals_s)
    assert timing.end_s >= timing.arrivals_s[-1]
    assert (timing.num_tokens, timing.num_prompt_tokens) == (3, 7)


async def test_without_usage_ids_are_counted_else_events(server) -> None:
    server.events = [event("", token_ids=[1]), event("x", token_ids=[2, 3]), "[DONE]"]
    timing = await ask(server)
    assert (len(timing.arrivals_s), timing.num_tokens, timing.num_prompt_tokens) == (2, 3, 2)
    server.events = [event("x"), event("y"), "[DONE]"]
    assert (await ask(server)).num_tokens == 2


async def test_an_answer_that_ends_at_once_has_come(server) -> None:
    server.events = [event("", finish_reason="stop"), "[DONE]"]
    timing = await ask(server)
    assert (len(timing.arrivals_s), timing.error) == (1, None)


async def test_fields_that_are_off_are_not_sent(server) -> None:
    server.events = ["[DONE]"]
    await ask(server)
    await ask(server, Order(max_tokens=5, ignore_eos=True, return_token_ids=True, model="other"), prompt="text")
    plain, full = server.bodies
    assert plain == {
        "model": "m",  # the first that answers in text
        "prompt": [5, 6],
        "max_tokens": 5,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert full == plain | {"model": "other", "prompt": "text", "ignore_eos": True, "return_token_ids": True}


async def test_failures_are_timings(server) -> None:
    server.events = [event("a")]
    assert (await ask(server)).error == "the stream broke off"
    server.events = [event("a"), '{"error": {"message": "engine died"}}']
    assert (await ask(server)).error == "engine died"
    server.events = ["{half"]
    assert (await ask(server)).error.startswith("JSONDecodeError")
    server.status = 400
    assert (await ask(server)).error == "400: too long"
    server.error = b"<html>"
    assert (await ask(server)).error == "status 400"


async def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(EngineUnavailable, match="start the server"):
        async with open_http_client(url, ORDER):
            pass
    async with open_http_client(url, Order(max_tokens=1, model="m")) as client:
        assert (await client.ask("x", 0.0)).error.startswith("ConnectError")


async def test_no_model_that_answers_in_text(server) -> None:
    server.models = [{"id": "labels", "task": "classify"}]
    with pytest.raises(ConfigError, match="no model"):
        async with open_http_client(server.url, ORDER):
            pass
