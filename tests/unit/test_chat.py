"""The terminal chat: what it sends, shows, and how it stops. The cluster is a transport that answers by rule."""

import json
from collections.abc import Callable, Generator, Sequence

import httpx
import pytest

from glm_cluster.chat import ChatClient, Message, converse, open_client
from glm_cluster.errors import ConfigError, EngineUnavailable, InvalidRequest


def client(answer: Callable[[httpx.Request], httpx.Response], url: str = "http://cluster") -> ChatClient:
    return ChatClient(httpx.Client(transport=httpx.MockTransport(answer), base_url=url), max_tokens=50)


def sse(*events: object) -> httpx.Response:
    lines = [f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events]
    return httpx.Response(200, text="".join(lines))


def delta(text: str) -> dict[str, object]:
    return {"choices": [{"delta": {"content": text}}]}


def test_streams_the_pieces_and_sends_the_history() -> None:
    sent: list[dict[str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return sse(
            {"choices": [{"delta": {"role": "assistant"}}]}, delta("Par"), delta("is"), {"choices": []}, "[DONE]"
        )

    messages = [{"role": "user", "content": "Capital?"}]
    assert "".join(client(answer).stream("demo", messages)) == "Paris"
    assert {"model": "demo", "messages": messages, "stream": True, "max_tokens": 50}.items() <= sent[0].items()


def test_model_is_asked_for() -> None:
    assert client(lambda request: httpx.Response(200, json={"data": [{"id": "demo"}]})).model() == "demo"


@pytest.mark.parametrize(
    ("response", "error", "sentence"),
    [
        (httpx.Response(400, json={"error": {"message": "too long"}}), InvalidRequest, "too long"),
        (httpx.Response(503, json={"error": {"message": "starting"}}), EngineUnavailable, "starting"),
        (httpx.Response(502, text="<html>"), EngineUnavailable, "status 502"),
        (sse(delta("a"), {"error": {"message": "group died"}}), EngineUnavailable, "group died"),
    ],
)
def test_refusals_become_sentences(response: httpx.Response, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        list(client(lambda request: response).stream("demo", []))


def raising(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error

    return answer


def test_silence_says_how_to_start_a_cluster() -> None:
    with pytest.raises(EngineUnavailable, match="glm-cluster serve"):
        client(raising(httpx.ConnectError("refused"))).model()


def test_broken_stream() -> None:
    with pytest.raises(EngineUnavailable, match="broke"):
        list(client(raising(httpx.ReadError("reset"))).stream("demo", []))


def test_url_without_a_scheme() -> None:
    with pytest.raises(ConfigError, match="--url"):
        ChatClient(httpx.Client(base_url="localhost:8000"), max_tokens=50).model()


@pytest.mark.parametrize(
    ("url", "asks_the_proxy"),
    [
        ("http://127.0.0.1:8000", False),
        ("http://127.8.8.8", False),
        ("http://[::1]:8000/v1", False),
        ("http://localhost:8000", False),
        ("http://gpu-box:8000", True),
        ("http://10.0.0.7:8000", True),
    ],
)
def test_no_proxy_between_a_machine_and_itself(url: str, asks_the_proxy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment, common in companies, once answered for 127.0.0.1."""
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with open_client(url) as http:
        assert http.trust_env is asks_the_proxy
        assert str(http.base_url).removesuffix("/") == url.removesuffix("/v1")


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="--url"):
        open_client("http://[::1")


def keyboard(*lines: str) -> Callable[[], str]:
    """Lines, then Ctrl-D."""
    left = iter(lines)

    def read() -> str:
        for line in left:
            return line
        raise EOFError

    return read


def test_conversation_remembers() -> None:
    asked: list[list[Message]] = []
    shown: list[str] = []

    def answer(messages: Sequence[Message]) -> Generator[str, None, None]:
        asked.append(list(messages))
        yield from (messages[-1]["content"], "!")

    converse(answer, keyboard("one", "  ", "two"), shown.append)
    assert "".join(shown) == "one!\ntwo!\n"
    assert [[message["content"] for message in messages] for messages in asked] == [["one"], ["one", "one!", "two"]]


def test_interrupt_stops_this_answer_only() -> None:
    """Ctrl-C closes the stream, which cancels the request; what was said stays in the history."""
    closed: list[str] = []
    asked: list[list[Message]] = []

    def answer(messages: Sequence[Message]) -> Generator[str, None, None]:
        asked.append(list(messages))
        question = messages[-1]["content"]
        try:
            yield f"{question} is"
            yield " forty"
        finally:
            closed.append(question)

    shown: list[str] = []

    def write(text: str) -> None:
        shown.append(text)
        if shown == ["six by seven is"]:
            raise KeyboardInterrupt

    converse(answer, keyboard("six by seven", "and"), write)
    assert closed == ["six by seven", "and"]
    assert asked[1][1] == {"role": "assistant", "content": "six by seven is"}
    assert "".join(shown) == "six by seven is [stopped]\nand is forty\n"
