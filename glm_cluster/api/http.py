"""The HTTP wire: OpenAI's routes over a `Service`. Knows paths and statuses, nothing of models or engines."""

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from glm_cluster.api.edge import edge
from glm_cluster.api.exchange import Outgoing, decode_json, read_body, while_connected
from glm_cluster.api.openai import ChatCompletionRequest, CompletionRequest
from glm_cluster.api.replies import (
    CHAT,
    COMPLETION,
    Dialect,
    EventWriter,
    Head,
    http_error_body,
    models_body,
    whole_reply,
)
from glm_cluster.api.service import Delta, Prepared, Service, collect
from glm_cluster.errors import GlmError
from glm_cluster.metrics import Meters


def build_http_app(service: Service, ready: Callable[[], Awaitable[bool]], meters: Meters) -> FastAPI:
    """The whole HTTP surface. `ready` says whether a request would be answered now."""

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"}) if await ready() else JSONResponse({"status": "not ready"}, 503)

    async def models(request: Request) -> JSONResponse:
        return JSONResponse(models_body(service.info))

    chat = _Endpoint(CHAT, _prepare_chat, service, meters)
    completions = _Endpoint(COMPLETION, _prepare_completion, service, meters)
    return FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # our bodies are read by hand, so FastAPI could not describe them
        redirect_slashes=False,
        exception_handlers={HTTPException: _http_error},
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/health", health),
        ],
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that passed every check, and how its answer is to be sent."""

    prepared: Prepared
    stream: bool
    include_usage: bool
    return_token_ids: bool


async def _prepare_chat(service: Service, request_id: str, body: bytes) -> _Asked:
    request = await service.read(lambda: ChatCompletionRequest.parse(decode_json(body)), size_bytes=len(body))
    return _asked(request, await service.prepare_chat(request_id, request))


async def _prepare_completion(service: Service, request_id: str, body: bytes) -> _Asked:
    request = await service.read(lambda: CompletionRequest.parse(decode_json(body)), size_bytes=len(body))
    return _asked(request, await service.prepare_completion(request_id, request))


def _asked(request: ChatCompletionRequest | CompletionRequest, prepared: Prepared) -> _Asked:
    options = request.stream_options
    return _Asked(
        prepared=prepared,
        stream=request.stream,
        include_usage=options is not None and options.include_usage,
        return_token_ids=request.return_token_ids,
    )


_Prepare: TypeAlias = Callable[[Service, str, bytes], Awaitable[_Asked]]


class _Endpoint:
    """An ASGI application for one generating route. It owns the exchange from the body's last byte to the answer's."""

    def __init__(self, dialect: Dialect, prepare: _Prepare, service: Service, meters: Meters) -> None:
        self._dialect = dialect
        self._prepare = prepare
        self._service = service
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(receive)
        except ClientDisconnect:
            return
        out = Outgoing(send)
        try:
            await while_connected(receive, self._answer(body, out))
        except GlmError as error:
            await out.fail(error)

    async def _answer(self, body: bytes, out: Outgoing) -> None:
        with edge(self._meters, "http", self._dialect.route):
            head = Head(id=self._dialect.id_prefix + secrets.token_hex(12), model=self._service.info.name)
            asked = await self._prepare(self._service, head.id, body)
            prompt_ids = asked.prepared.generation.prompt if asked.return_token_ids else None
            async with aclosing(self._service.stream(asked.prepared)) as deltas:
                if asked.stream:
                    usage = asked.include_usage
                    await _stream(
                        EventWriter(self._dialect, head, include_usage=usage, prompt_ids=prompt_ids), deltas, out
                    )
                else:
                    await out.json(200, whole_reply(self._dialect, head, await collect(deltas), prompt_ids))


async def _stream(writer: EventWriter, deltas: AsyncGenerator[Delta, None], out: Outgoing) -> None:
    """Send events as deltas come. An error before the first delta still becomes a proper status."""
    first = await anext(deltas)
    await out.start_events()
    await out.event(writer.first(first))
    async for delta in deltas:
        await out.event(writer.next(delta))
    await out.end()


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """What only HTTP can get wrong, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    words = {
        404: (f"no route {request.url.path}; see GET /v1/models, POST /v1/chat/completions", "unknown_route"),
        405: (f"{request.url.path} does not take {request.method}", "method_not_allowed"),
        413: (error.detail, "body_too_large"),
    }
    message, code = words.get(error.status_code, (error.detail, "http_error"))
    return JSONResponse(http_error_body(message, code), error.status_code, headers=error.headers)
