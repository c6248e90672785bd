"""The HTTP wire: OpenAI's routes, and those of classifiers, over a `Service`.

Knows paths and statuses, nothing of models or engines.
"""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from glm_cluster.api.about import about_routes
from glm_cluster.api.access import Access
from glm_cluster.api.account import Account
from glm_cluster.api.answers import Answers, Delta, collect, told_bytes
from glm_cluster.api.docs import document_routes
from glm_cluster.api.encoding_replies import classification_pieces, embedding_pieces, token_pieces
from glm_cluster.api.encodings import classify, classify_tokens, embed
from glm_cluster.api.exchange import Endpoint, Outgoing
from glm_cluster.api.gate import Gate
from glm_cluster.api.generations import Prepared
from glm_cluster.api.inputs import ClassifyRequest, ClassifyTokensRequest, EmbeddingRequest
from glm_cluster.api.json_pieces import json_pieces
from glm_cluster.api.openai import ChatCompletionRequest, CompletionRequest, GenerationBody
from glm_cluster.api.openapi import document
from glm_cluster.api.origins import shared_with
from glm_cluster.api.replies import (
    CHAT,
    COMPLETION,
    Asked,
    EventWriter,
    Head,
    ReplyStyle,
    asked,
    dumps,
    http_error_body,
    whole_reply,
)
from glm_cluster.api.schema import Body
from glm_cluster.api.server import Server
from glm_cluster.api.server_replies import DetokenizeBody, tokenize_pieces
from glm_cluster.api.service import Service
from glm_cluster.api.strict_json import decode_json
from glm_cluster.api.tokenization import DetokenizeRequest, TokenizeRequest, detokenize, tokenize
from glm_cluster.api.window import LOOP_BYTES, EncodeWindow
from glm_cluster.metrics import Meters

B = TypeVar("B", bound=Body)


def build_http_app(
    service: Service,
    server: Server,
    meters: Meters,
    access: Access | None = None,
    *,
    allowed_origins: Sequence[str] = (),
) -> FastAPI:
    """The whole HTTP surface; without `access` anyone may ask."""
    access = access or Access(meters=meters)
    posts: dict[str, _Generating | _Encoding] = {
        "/v1/chat/completions": _Generating(CHAT, _prepare_chat, service),
        "/v1/completions": _Generating(COMPLETION, _prepare_completion, service),
        "/v1/embeddings": _Encoding("embeddings", _embeddings, service),
        "/v1/classify": _Encoding("classify", _classify, service),
        "/v1/classify_tokens": _Encoding("classify_tokens", _classify_tokens, service),
        **dict.fromkeys(("/tokenize", "/v1/tokenize"), _Encoding("tokenize", _tokenize, service)),
        **dict.fromkeys(("/detokenize", "/v1/detokenize"), _Encoding("detokenize", _detokenize, service)),
    }
    routes = [
        *(
            Route(path, Endpoint(answering.route, answering.answer, access), methods=["POST"])
            for path, answering in posts.items()
        ),
        *about_routes(service, server, meters),
        *document_routes(lambda: document(service.infos)),
    ]
    known = ", ".join(f"{'POST' if route.path in posts else 'GET'} {route.path}" for route in routes)

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        return _http_error(request, error, known)

    return FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # our bodies are read by hand, so FastAPI could not describe them
        redirect_slashes=False,
        exception_handlers={HTTPException: http_error},
        middleware=[*shared_with(allowed_origins), Middleware(Gate, access=access)],
        routes=[*routes],
    )


@dataclass(frozen=True, slots=True)
class _Order:
    """A request that passed every check, and how its answer is to be sent."""

    model: str
    prepared: Prepared
    stream: bool
    told: Asked


async def _prepare_chat(service: Service, account: Account, request_id: str, body: bytes) -> _Order:
    request = await _read(ChatCompletionRequest, service, account, body)
    return _order(request, await service.prepare_chat(request_id, request))


async def _prepare_completion(service: Service, account: Account, request_id: str, body: bytes) -> _Order:
    request = await _read(CompletionRequest, service, account, body)
    return _order(request, await service.prepare_completion(request_id, request))


async def _read(kind: type[B], service: Service, account: Account, body: bytes) -> B:
    """The request that a body is, for a model that its sender may ask."""
    request = await service.read(lambda: kind.parse(decode_json(body)), size_bytes=len(body))
    account.caller.check_model(request.model)
    return request


def _order(request: GenerationBody, prepared: Prepared) -> _Order:
    return _Order(model=request.model, prepared=prepared, stream=request.stream, told=asked(request, prepared))


_Prepare: TypeAlias = Callable[[Service, Account, str, bytes], Awaitable[_Order]]


class _Generating:
    """Answers one generating route, whole or as a stream."""

    def __init__(self, style: ReplyStyle, prepare: _Prepare, service: Service) -> None:
        self.route = style.route
        self._style = style
        self._prepare = prepare
        self._service = service

    async def answer(self, body: bytes, out: Outgoing, account: Account) -> None:
        """Answer as the body asks."""
        request_id = self._style.id_prefix + out.caller.request_id
        order = await self._prepare(self._service, account, request_id, body)
        prepared = account.admit_generations(order.prepared, model=order.model)
        head = Head(id=request_id, model=order.model)
        stream = self._service.stream(prepared)
        async with aclosing(stream), aclosing(account.metered(stream, streamed=order.stream)) as deltas:
            if order.stream:
                await _stream(EventWriter(self._style, head, order.told), deltas, out, prepared.window)
            else:
                await out.json_pieces(200, await self._whole(head, await collect(deltas), order))
                account.delivered()

    async def _whole(self, head: Head, answers: Answers, order: _Order) -> list[bytes]:
        told, window = order.told, order.prepared.window
        size_bytes = told.size_bytes(answers.choices, num_prompts=len(answers.choices))
        reply = await window.off_loop(
            lambda: whole_reply(self._style, head, answers, told), size_bytes=told_bytes(answers.choices)
        )
        return [dumps(reply)] if size_bytes <= LOOP_BYTES else await window.drain(json_pieces(reply), len)


class _Encoding:
    """Answers one route of models that give numbers."""

    def __init__(
        self, route: str, pieces: Callable[[Service, Account, bytes], Awaitable[list[bytes]]], service: Service
    ) -> None:
        self.route = route
        self._pieces = pieces
        self._service = service

    async def answer(self, body: bytes, out: Outgoing, account: Account) -> None:
        """Answer what the body asks."""
        await out.json_pieces(200, await self._pieces(self._service, account, body))


async def _embeddings(service: Service, account: Account, body: bytes) -> list[bytes]:
    request = await _read(EmbeddingRequest, service, account, body)
    answers = await embed(service, request, account)
    return await answers.window.drain(embedding_pieces(answers, request.encoding_format), len)


async def _classify(service: Service, account: Account, body: bytes) -> list[bytes]:
    request = await _read(ClassifyRequest, service, account, body)
    answers = await classify(service, request, account)
    return await answers.window.drain(classification_pieces(answers), len)


async def _classify_tokens(service: Service, account: Account, body: bytes) -> list[bytes]:
    request = await _read(ClassifyTokensRequest, service, account, body)
    answers = await classify_tokens(service, request, account)
    return await answers.window.drain(token_pieces(answers, include_scores=request.include_scores), len)


async def _tokenize(service: Service, account: Account, body: bytes) -> list[bytes]:
    request = await _read(TokenizeRequest, service, account, body)
    tokenized = await tokenize(service, request)
    return await tokenized.window.drain(tokenize_pieces(tokenized), len)


async def _detokenize(service: Service, account: Account, body: bytes) -> list[bytes]:
    request = await _read(DetokenizeRequest, service, account, body)
    reply: DetokenizeBody = {"prompt": await detokenize(service, request)}
    return [json.dumps(reply).encode()]


async def _stream(
    writer: EventWriter, deltas: AsyncGenerator[Delta, None], out: Outgoing, window: EncodeWindow
) -> None:
    """Send events as deltas come. An error before the first delta still becomes a proper status."""
    first = await anext(deltas)
    await out.start_events()
    await out.event(await _event(writer, first, window))
    async for delta in deltas:
        await out.event(await _event(writer, delta, window))
    await out.end()


async def _event(writer: EventWriter, delta: Delta, window: EncodeWindow) -> bytes:
    """The event of a delta, which may have much to tell."""
    size_bytes = writer.size_bytes(delta)
    if size_bytes <= LOOP_BYTES:
        return writer.event(delta)
    return await window.off_loop(lambda: writer.event(delta), size_bytes=size_bytes)


def _http_error(request: Request, error: Exception, known: str) -> JSONResponse:
    """What only HTTP can get wrong, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    words = {
        404: (f"no route {request.url.path}; there are {known}", "unknown_route"),
        405: (f"{request.url.path} does not take {request.method}", "method_not_allowed"),
    }
    message, code = words.get(error.status_code, (error.detail, "http_error"))
    return JSONResponse(http_error_body(message, code), error.status_code, headers=error.headers)
