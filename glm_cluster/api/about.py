"""The HTTP routes that take no body: models, what the server is, and how it is doing."""

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from glm_cluster.api.replies import error_body
from glm_cluster.api.server import Server
from glm_cluster.api.server_replies import StatusBody, VersionBody, model_body, models_body
from glm_cluster.api.service import Service
from glm_cluster.errors import ModelNotFound


def about_routes(service: Service, server: Server) -> list[Route]:
    """GET routes over what is served and by whom."""

    async def models(request: Request) -> JSONResponse:
        return JSONResponse(models_body(service.infos))

    async def model(request: Request) -> JSONResponse:
        try:
            return JSONResponse(model_body(service.named(request.path_params["model"]).info))
        except ModelNotFound as error:
            return JSONResponse(error_body(error), error.http_status)

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

    return [
        Route("/v1/models", models),
        Route("/v1/models/{model:path}", model),
        Route("/v1/server_info", server_info),
        Route("/load", load),
        Route("/health", health),
        Route("/ready", ready),
        Route("/version", version),
    ]


def _status(is_well: bool) -> JSONResponse:
    body: StatusBody = {"status": "ok" if is_well else "not ready"}
    return JSONResponse(body, 200 if is_well else 503)
