"""A client of OpenAI's streaming completions over HTTP. Knows httpx and server-sent events."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from glm_cluster.bench.order import Order
from glm_cluster.bench.prompts import Prompt
from glm_cluster.bench.timing import Timing
from glm_cluster.chat import is_loopback
from glm_cluster.errors import ConfigError, EngineUnavailable

_TIMEOUT = httpx.Timeout(600.0, connect=10.0)
_DATA = "data:"


@dataclass(frozen=True, slots=True)
class HttpClient:
    """One server's /v1/completions."""

    http: httpx.AsyncClient
    model: str
    order: Order

    async def ask(self, prompt: Prompt, due_s: float) -> Timing:
        """Stream one answer and say when its parts came."""
        answer = _Answer()
        try:
            async with self.http.stream("POST", "/v1/completions", json=self._body(prompt)) as response:
                if response.is_error:
                    answer.error = _refusal(response.status_code, await response.aread())
                else:
                    await answer.read(response.aiter_lines())
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        return answer.timing(due_s, prompt)

    def _body(self, prompt: Prompt) -> dict[str, object]:
        body: dict[str, object] = {
            "model": self.model,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": self.order.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.order.ignore_eos:
            body["ignore_eos"] = True
        if self.order.return_token_ids:
            body["return_token_ids"] = True
        return body


@dataclass(slots=True)
class _Answer:
    """What has come of one stream so far."""

    arrivals_s: list[float] = field(default_factory=list)
    num_ids: int = 0
    usage: Mapping[str, Any] = field(default_factory=dict)
    done: bool = False
    error: str | None = None

    async def read(self, lines: AsyncIterator[str]) -> None:
        """Take in the events of a stream up to its end."""
        async for line in lines:
            if line.startswith(_DATA):
                self._take(line.removeprefix(_DATA).strip())
        if not self.done and self.error is None:
            self.error = "the stream broke off"

    def _take(self, data: str) -> None:
        if data == "[DONE]":
            self.done = True
            return
        event = json.loads(data)
        if "error" in event:
            self.error = _sentence(event)
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices") or ():
            ids = choice.get("token_ids") or ()
            self.num_ids += len(ids)
            if choice.get("text") or ids or (choice.get("finish_reason") and not self.arrivals_s):
                self.arrivals_s.append(time.perf_counter())

    def timing(self, due_s: float, prompt: Prompt) -> Timing:
        """Tokens as the server counts them; else as ids came, or as events did."""
        known = 0 if isinstance(prompt, str) else len(prompt)
        return Timing(
            due_s=due_s,
            arrivals_s=tuple(self.arrivals_s),
            end_s=time.perf_counter(),
            num_tokens=int(self.usage.get("completion_tokens") or self.num_ids or len(self.arrivals_s)),
            num_prompt_tokens=int(self.usage.get("prompt_tokens") or known),
            error=self.error,
        )


@asynccontextmanager
async def open_http_client(url: str, order: Order) -> AsyncIterator[HttpClient]:
    """Connect, and find out what the server calls its model unless the order says so."""
    base = url.rstrip("/").removesuffix("/v1")
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    remote = not is_loopback(httpx.URL(base).host)
    async with httpx.AsyncClient(base_url=base, timeout=_TIMEOUT, limits=limits, trust_env=remote) as http:
        yield HttpClient(http, order.model or await _first_model(http), order)


async def _first_model(http: httpx.AsyncClient) -> str:
    try:
        response = await http.get("/v1/models")
        response.raise_for_status()
        names = [m["id"] for m in response.json()["data"] if m.get("task", "generate") == "generate"]
        return str(names[0])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EngineUnavailable(f"nothing answers at {http.base_url} ({error}); start the server first") from error
    except (ValueError, KeyError, IndexError) as error:
        raise ConfigError(f"{http.base_url}v1/models lists no model that answers in text; name it") from error


def _refusal(status: int, body: bytes) -> str:
    try:
        return f"{status}: {_sentence(json.loads(body))}"
    except ValueError:
        return f"status {status}"


def _sentence(event: Any) -> str:
    match event:
        case {"error": {"message": str(message)}} | {"error": str(message)}:
            return message
        case _:
            return json.dumps(event)
