"""The replicas as an ingress sees them: one Serve handle, and Ray's failures put into our words.

What Ray says of them names actors and addresses: it goes into the log, and no further.
"""

import asyncio
import logging
from contextvars import Context
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from glm_cluster.deploy.channel import Loss, Receipt, Submission
from glm_cluster.deploy.routers import known_loads
from glm_cluster.deploy.shared_answer import SharedAnswer
from glm_cluster.errors import GlmError
from glm_cluster.records import ReplicaLoad

logger = logging.getLogger(__name__)

_PROBE_S = 10.0
_PROBE_KEPT_S = 1.0  # anyone may ask how the server is, as often as he likes


class Fleet:
    """Sends submissions and probes to whichever replica the router picks."""

    def __init__(self, handle: Any) -> None:
        self._deployment = handle.deployment_id
        self._run = handle.run
        self._probe = handle.probe
        self._alive = SharedAnswer(lambda: self._says_yes(step=False), kept_s=_PROBE_KEPT_S)
        self._ready = SharedAnswer(lambda: self._says_yes(step=True), kept_s=_PROBE_KEPT_S)

    async def submit(self, submission: Submission) -> Receipt | Loss:
        """Run `submission` on some replica. Cancelling this cancels the call down to the engine."""
        response = self._run.remote(submission)
        call = asyncio.ensure_future(_answer(response))
        try:
            await asyncio.wait([call])  # raises where we are cancelled, not where the call is
        except asyncio.CancelledError:
            _cancel(response)
            call.add_done_callback(_forget)
            raise
        if call.cancelled():
            return Loss("the replica cancelled the call", "moved")
        return call.result()

    async def alive(self) -> bool:
        """Whether a replica has an engine, or had one a moment ago."""
        return await self._alive.get()

    async def ready(self) -> bool:
        """Whether there is a replica all of whose ranks can make a step, or could a moment ago."""
        return await self._ready.get()

    async def loads(self) -> list[ReplicaLoad]:
        """What the replicas in service last told the routers of themselves: a second or two old."""
        if (known := known_loads(self._deployment)) is None:
            await self.alive()  # the first call is what makes the router
            known = known_loads(self._deployment)
        return known or []

    async def _says_yes(self, *, step: bool) -> bool:
        # An empty context: the call must not inherit the id and protocol of the client's own request.
        call = asyncio.get_running_loop().create_task(self._ask(step=step), context=Context())
        done, _ = await asyncio.wait([call], timeout=_PROBE_S)
        if not done:
            call.cancel()
            return False
        return not call.cancelled() and call.result()

    async def _ask(self, *, step: bool) -> bool:
        response = self._probe.remote(step)
        try:
            return bool(await response)
        except asyncio.CancelledError:
            response.cancel()
            raise
        except (RayError, RayServeException, GlmError):
            return False
        except Exception:  # the edge of the process: whatever else Serve may raise, nobody answered
            logger.exception("a probe failed")
            return False


async def _answer(response: Any) -> Receipt | Loss:
    try:
        outcome: Receipt | Loss = await response
        return outcome
    except ActorDiedError:
        return Loss("the replica died", "died")
    except ActorUnavailableError:
        response.cancel()  # it may live on; the attempt's number is what fences its tokens off
        logger.warning("a replica cannot be reached", exc_info=True)
        return Loss("the replica cannot be reached", "moved")
    except DeploymentUnavailableError:
        return Loss("no replica could be started", "refused")
    except RayTaskError as error:
        if isinstance(error.cause, GlmError):
            raise error.cause from None
        logger.exception("a replica failed: %r", error.cause)
        return Loss("the replica failed", "moved")
    except RayError:
        logger.exception("a call to a replica failed")
        return Loss("the call to the replica failed", "moved")


def _cancel(response: Any) -> None:
    """Cancel a call in whatever state it is.

    Ray forgets a cancellation that falls between the assignment of a call to a replica and the next step of who
    awaits it. A second wait, whose first step comes right before the cancellation, has taken the assignment by then.
    """
    asyncio.ensure_future(_answer(response)).add_done_callback(_forget)
    asyncio.get_running_loop().call_soon(response.cancel)


def _forget(call: "asyncio.Future[Receipt | Loss]") -> None:
    """Take the outcome of a cancelled call, so that asyncio does not report it as an error nobody looked at."""
    if not call.cancelled():
        call.exception()
