"""The OpenAPI document and a page that shows it, as routes. The page asks nobody but this server."""

import asyncio
import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


def document_routes(make: Callable[[], Mapping[str, object]]) -> list[Route]:
    """GET /openapi.json, made when it is first asked for, and GET /docs."""
    page = files("glm_cluster.api").joinpath("docs.html").read_text(encoding="utf-8")

    @cache
    def written() -> bytes:
        return json.dumps(make(), separators=(",", ":")).encode()

    async def openapi(request: Request) -> Response:
        return Response(await asyncio.to_thread(written), media_type="application/json")

    async def docs(request: Request) -> Response:
        return HTMLResponse(page, headers={"content-security-policy": _POLICY})

    return [Route("/openapi.json", openapi), Route("/docs", docs)]
