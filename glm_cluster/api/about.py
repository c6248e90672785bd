"""The HTTP routes that take no body: models, what the server is, and how it is doing."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from glm_cluster.api.edge import edge
from glm_cluster.api.replies import error_body
from glm_cluster.api.server import Server
from glm_cluster.api.server_replies import StatusBody, VersionBody, model_body, models_body
from glm_cluster.api.service import Service
from glm_cluster.errors import GlmError
from glm_cluster.metrics import Meters

_Answer: TypeAlias = Callable[[Request], Awaitable[JSONResponse]]


def about_routes(service: Service, server: Server, meters: Meters) -> list[Route]:
    """GET routes over what is served and by whom."""

    async def models(request: Request) -> JSONResponse:
        return JSONResponse(models_body(service.infos))

    async def model(request: Request) -> JSONResponse:
        return JSONResponse(model_body(service.named(request.path_params["model"]).info))

    async def server_info(request: Request) -> JSONResponse:
        return JSONResponse(asdict(server.info(service.infos)))

    async def load(request: Request) -> JSONResponse:
        return JSONResponse(asdict(await server.load()))

    async def health(request: Request) -> JSONResponse:
        return _status(await server.alive())

    async def ready(request: Request) -> JSONResponse:
        return _status(await server.ready())

    async def version(request: Request) -> JSONResponse:
        body: VersionBody = {"version": server.versions.glm_cluster}
        return JSONResponse(body)

    answers: list[tuple[str, str, _Answer]] = [
        ("/v1/models", "models", models),
        ("/v1/models/{model:path}", "model", model),
        ("/v1/server_info", "server_info", server_info),
        ("/load", "load", load),
        ("/health", "health", health),
        ("/ready", "ready", ready),
        ("/version", "version", version),
    ]
    return [Route(path, _at_the_edge(name, answer, meters)) for path, name, answer in answers]


def _at_the_edge(name: str, answer: _Answer, meters: Meters) -> _Answer:
    """The answer, counted under that name; or the error that comes of it, in OpenAI's shape."""

    async def told(request: Request) -> JSONResponse:
        try:
            with edge(meters, "http", name):
                return await answer(request)
        except GlmError as error:
            return JSONResponse(error_body(error), error.http_status)

    return told


def _status(is_well: bool) -> JSONResponse:
    body: StatusBody = {"status": "ok" if is_well else "not ready"}
    return JSONResponse(body, 200 if is_well else 503)
