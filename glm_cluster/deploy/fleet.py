"""The replicas as an ingress sees them: one Serve handle, and Ray's failures put into our words."""

import asyncio
from contextvars import Context
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RequestCancelledError

from glm_cluster.deploy.channel import Loss, Receipt, Submission
from glm_cluster.errors import GlmError

_PROBE_S = 10.0
_SETTLE_S = 0.01


class Fleet:
    """Sends submissions and probes to whichever replica the router picks."""

    def __init__(self, handle: Any) -> None:
        self._generate = handle.generate
        self._probe = handle.probe

    async def submit(self, submission: Submission) -> Receipt | Loss:
        """Run `submission` on some replica. Cancelling this cancels the call down to the engine."""
        response = self._generate.remote(submission)
        # Ray forgets a cancellation that falls into the very tick in which the call was assigned to a replica, so
        # the wait for the answer goes on by itself and the cancellation comes a little later.
        call = asyncio.ensure_future(_answer(response))
        try:
            outcome = await asyncio.shield(call)
        except asyncio.CancelledError:
            call.add_done_callback(_forget)
            asyncio.get_running_loop().call_later(_SETTLE_S, response.cancel)
            raise
        except (ActorDiedError, ActorUnavailableError, RequestCancelledError) as error:
            # Unavailable does not prove death: the attempt's number is what fences its tokens off.
            return Loss(f"the replica is gone: {type(error).__name__}", entered=True)
        except DeploymentUnavailableError:
            return Loss("no replica could be started", entered=False)
        except RayTaskError as error:
            if isinstance(error.cause, GlmError):
                raise error.cause from None
            return Loss(f"the replica failed: {error}", entered=True)
        return outcome

    async def ready(self) -> bool:
        """Whether a replica can make a token now."""
        # An empty context: the call must not inherit the id and protocol of the client's own request.
        call = asyncio.get_running_loop().create_task(self._ask(), context=Context())
        done, _ = await asyncio.wait([call], timeout=_PROBE_S)
        if not done:
            call.cancel()
            return False
        return call.result()

    async def _ask(self) -> bool:
        response = self._probe.remote()
        try:
            return bool(await response)
        except asyncio.CancelledError:
            response.cancel()
            raise
        except (RayError, GlmError, DeploymentUnavailableError, RequestCancelledError):
            return False


async def _answer(response: Any) -> Receipt | Loss:
    outcome: Receipt | Loss = await response
    return outcome


def _forget(call: "asyncio.Future[Receipt | Loss]") -> None:
    """Take the outcome of a cancelled call, so that asyncio does not report it as an error nobody looked at."""
    if not call.cancelled():
        call.exception()
