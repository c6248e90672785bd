"""A chat in the terminal against a running cluster, over its OpenAI-compatible HTTP stream.

Knows the wire and the keyboard. Knows nothing of engines, Ray or checkpoints.
"""

import ipaddress
import json
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import httpx

from glm_cluster.errors import ConfigError, EngineUnavailable, InvalidRequest

Message: TypeAlias = dict[str, str]
_SAMPLING = {"temperature": 0.3, "top_p": 0.9}  # steadier than 1, which small models ramble at
_TIMEOUT = httpx.Timeout(600.0, connect=10.0)  # between two pieces of an answer, and to connect


@dataclass(frozen=True, slots=True)
class ChatClient:
    """The chat endpoint of one cluster."""

    http: httpx.Client
    max_tokens: int  # of one answer: a small model may never come to an end by itself

    def model(self) -> str:
        """The name of the first model there that answers in text."""
        with _sentences(self.http):
            response = self.http.get("/v1/models")
            _check(response)
            models = response.json()["data"]
        names = [str(model["id"]) for model in models if model.get("task", "generate") == "generate"]
        if not names:
            raise EngineUnavailable(f"no model at {self.http.base_url} answers in text; there are {len(models)} others")
        return names[0]

    def stream(self, model: str, messages: Sequence[Message]) -> Generator[str, None, None]:
        """Yield the answer piece by piece. Closing the generator cancels the request."""
        body = {"model": model, "messages": list(messages), "stream": True, "max_tokens": self.max_tokens, **_SAMPLING}
        with _sentences(self.http), self.http.stream("POST", "/v1/chat/completions", json=body) as response:
            _check(response)
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield _piece(json.loads(line.removeprefix("data: ")))


def chat(url: str, max_tokens: int, api_key: str | None = None) -> None:
    """The chat of the command line: prompts on a terminal, plain lines otherwise."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    with open_client(url, api_key) as http:
        client = ChatClient(http, max_tokens)
        model = client.model()
        prompt = ""
        if sys.stdin.isatty():
            prompt = "[bold cyan]you>[/] "
            console.print(f"[dim]{model} at {url}. Ctrl-C stops an answer, Ctrl-D quits.[/]")
        write = lambda text: console.print(text, end="", markup=False)  # noqa: E731
        converse(lambda messages: client.stream(model, messages), lambda: console.input(prompt), write)


def open_client(url: str, api_key: str | None = None) -> httpx.Client:
    """A client of the cluster at `url`, with a key if it asks for one.

    No proxy stands between this machine and itself.
    """
    try:
        remote = not is_loopback(httpx.URL(url).host)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{url} is not an http:// or https:// address; give one with --url") from error
    base_url = url.rstrip("/").removesuffix("/v1")
    headers = None if api_key is None else {"authorization": f"Bearer {api_key}"}
    return httpx.Client(base_url=base_url, headers=headers, timeout=_TIMEOUT, trust_env=remote)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def converse(
    answer: Callable[[Sequence[Message]], Generator[str, None, None]],
    read: Callable[[], str],
    write: Callable[[str], None],
) -> None:
    """Answer line after line, remembering them, until `read` raises EOFError.

    KeyboardInterrupt during an answer stops that answer only; what was said of it stays in the history.
    """
    messages: list[Message] = []
    while True:
        try:
            question = read().strip()
        except EOFError:
            return
        if question:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": _say(answer(messages), write)})


def _say(pieces: Generator[str, None, None], write: Callable[[str], None]) -> str:
    said: list[str] = []
    try:
        for piece in pieces:
            said.append(piece)
            write(piece)
    except KeyboardInterrupt:
        write(" [stopped]")
    finally:
        pieces.close()
    write("\n")
    return "".join(said)


def _piece(event: dict[str, object]) -> str:
    match event:
        case {"error": {"message": str(message)}}:
            raise EngineUnavailable(message)
        case {"choices": [{"delta": {"content": str(text)}}, *_]}:
            return text
        case _:
            return ""


def _check(response: httpx.Response) -> None:
    if not response.is_error:
        return
    response.read()
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the cluster answered with status {response.status_code}"
    raise InvalidRequest(message) if response.is_client_error else EngineUnavailable(message)


@contextmanager
def _sentences(http: httpx.Client) -> Iterator[None]:
    """Turn transport errors into a sentence that says what to do."""
    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise ConfigError(f"{http.base_url} is not an http:// or https:// address; give one with --url") from error
    except httpx.ConnectError as error:
        raise EngineUnavailable(f"nothing answers at {http.base_url}; start it with `glm-cluster serve`") from error
    except httpx.HTTPError as error:
        raise EngineUnavailable(f"the connection to {http.base_url} broke ({error}); ask again") from error
