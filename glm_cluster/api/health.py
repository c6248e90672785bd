"""grpc.health.v1: what Kubernetes and load balancers ask before they send work. Knows readiness, nothing else."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from grpc import StatusCode
from grpc_health.v1.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

from glm_cluster.api.calls import CallContext, status_of
from glm_cluster.api.edge import edge
from glm_cluster.api.proto import glm_pb2
from glm_cluster.errors import InvalidRequest
from glm_cluster.metrics import Meters

WATCH_INTERVAL_S = 1.0


class HealthMethods:
    """The methods of grpc.health.v1.Health, for the whole server (the empty name) and for our one service."""

    def __init__(self, ready: Callable[[], Awaitable[bool]], meters: Meters) -> None:
        self._ready = ready
        self._meters = meters
        self._stopped = asyncio.Event()
        self._services = ("", glm_pb2.DESCRIPTOR.services_by_name["Glm"].full_name)

    async def Check(self, request: HealthCheckRequest, context: CallContext) -> HealthCheckResponse:
        """SERVING when a request would be answered now."""
        if request.service not in self._services:
            unknown = f"no service {request.service!r} here; ask for one of {list(self._services)}"
            context.set_code(StatusCode.NOT_FOUND)
            context.set_details(unknown)
            raise InvalidRequest(unknown, param="service")
        with self._edge("health", context):
            return HealthCheckResponse(status=await self._status())

    async def List(self, request: HealthListRequest, context: CallContext) -> HealthListResponse:
        """The status of every service."""
        with self._edge("health", context):
            status = HealthCheckResponse(status=await self._status())
            return HealthListResponse(statuses=dict.fromkeys(self._services, status))

    def stop(self) -> None:
        """Serve nothing from now on, and end every watch by saying so."""
        self._stopped.set()

    async def Watch(
        self, request: HealthCheckRequest, context: CallContext
    ) -> AsyncGenerator[HealthCheckResponse, None]:
        """The status now, and again whenever it changes, until the server stops."""
        told = None
        with self._edge("health_watch", context):
            while True:
                is_last = self._stopped.is_set()
                known = request.service in self._services
                status = await self._status() if known else HealthCheckResponse.SERVICE_UNKNOWN
                if status != told:
                    yield HealthCheckResponse(status=status)
                    told = status
                if is_last:
                    return
                await self._pause()

    @contextmanager
    def _edge(self, route: str, context: CallContext) -> Iterator[None]:
        """Count the call inside and give it the status of its error. It may be anyone's, and takes no place."""
        with status_of(context), edge(self._meters, "grpc", route):
            yield

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(WATCH_INTERVAL_S):
                await self._stopped.wait()

    async def _status(self) -> HealthCheckResponse.ServingStatus:
        is_serving = not self._stopped.is_set() and await self._ready()
        return HealthCheckResponse.SERVING if is_serving else HealthCheckResponse.NOT_SERVING
