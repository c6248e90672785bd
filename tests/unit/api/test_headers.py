"""Serve sees no header that it would act on or fail on."""

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from glm_cluster.api.headers import middlewares


async def seen(headers: list[tuple[bytes, bytes]]) -> list[str]:
    """The names of the headers that come through, of those given."""

    async def names(request: Request) -> JSONResponse:
        return JSONResponse([name.decode() for name, _ in request.headers.raw])

    app = Starlette(routes=[Route("/", names)], middleware=middlewares())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        came = (await client.get("/", headers=headers)).json()
    return [name.decode() for name, _ in headers if name.decode() in came]


@pytest.mark.parametrize(
    "header",
    [
        (b"x-request-id", b"\xff\xfe"),
        (b"x-request-id", b"<script>"),
        (b"x-request-id", b"a" * 129),
        (b"x-client-request-id", b"<script>"),
        (b"x-request-timeout-seconds", b"0.001"),
        (b"x_request_timeout_seconds", b"0.001"),
        (b"x-request-disconnect-disabled", b"?1"),
        (b"serve_multiplexed_model_id", b"a"),
        (b"x-session-id", b"\xff"),
    ],
)
async def test_is_left_out(header: tuple[bytes, bytes]) -> None:
    assert await seen([header]) == []


async def test_others_stay_in_their_order() -> None:
    given = [(b"authorization", b"Bearer \xff"), (b"x-other", b"1"), (b"x-other", b"2")]
    assert await seen(given) == [name.decode() for name, _ in given]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ([], None),
        ([(b"x-request-id", b"abc-1")], "abc-1"),
        ([(b"X_Request_ID", b"abc-1")], "abc-1"),
        ([(b"x-client-request-id", b"abc-2")], "abc-2"),
        ([(b"x-request-id", b"abc-1"), (b"x-client-request-id", b"abc-2")], "abc-2"),
        ([(b"x-request-id", b"abc-1"), (b"x-request-id", b"abc-2")], "abc-1"),
    ],
)
async def test_a_clients_name_for_its_request_is_no_name_of_serves(
    given: list[tuple[bytes, bytes]], name: str | None
) -> None:
    async def names(request: Request) -> JSONResponse:
        return JSONResponse([request.headers.getlist("x-client-request-id"), request.headers.getlist("x-request-id")])

    app = Starlette(routes=[Route("/", names)], middleware=middlewares())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/", headers=given)).json() == [[] if name is None else [name], []]


@pytest.mark.parametrize(("names", "kept"), [(["ours", "serve"], ["ours"]), (["serve"], ["serve"]), ([], [])])
async def test_a_response_has_one_name(names: list[str], kept: list[str]) -> None:
    async def named(request: Request) -> JSONResponse:
        response = JSONResponse({})
        for name in names:
            response.headers.append("X-Request-ID", name)
        return response

    app = Starlette(routes=[Route("/", named)], middleware=middlewares())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.get("/")
    assert response.headers.get_list("x-request-id") == kept
    assert response.headers["content-type"] == "application/json"
