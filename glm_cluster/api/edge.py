"""The edge of the process: where a request's fate is counted and a defect becomes an error a client may see."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from glm_cluster.errors import GlmError, InternalError
from glm_cluster.metrics import REQUEST_S, REQUESTS, Meters


@contextmanager
def edge(meters: Meters, wire: Literal["http", "grpc"], route: str) -> Iterator[None]:
    """Count the request inside; let only GlmErrors and cancellation out."""
    started = time.perf_counter()
    status = "ok"
    try:
        yield
    except GlmError as error:
        status = error.code
        raise
    except (asyncio.CancelledError, GeneratorExit):
        status = "cancelled"
        raise
    except Exception as error:
        status = InternalError.code
        logging.getLogger(__name__).exception("%s %s failed", wire, route)
        raise InternalError("a defect in the server; its log has the details") from error
    finally:
        meters.count(REQUESTS, 1, {"wire": wire, "route": route, "status": status})
        meters.observe(REQUEST_S, time.perf_counter() - started, {"wire": wire, "route": route})
