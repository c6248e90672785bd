"""Serve's request router for GlmReplica: `Placement` behind Ray Serve's interface."""

import time
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

from glm_cluster.deploy.channel import Submission
from glm_cluster.deploy.placement import Placement

_COOLING_S = 2.0  # a replica that could not be reached is gone round this long


class GlmRequestRouter(RequestRouter):  # type: ignore[misc]  # ray ships no types
    """Orders the replicas for each request: reachable and serving first, then as `Placement` says."""

    def initialize_state(self) -> None:
        """Called once by Serve."""
        self._placement = Placement()
        self._cooling: dict[str, float] = {}  # replica -> until when

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Serve tries the inner lists in order."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # or Serve asks again at once, for ever
        by_name = {r.replica_id.unique_id: r for r in candidate_replicas}
        submission = next((a for a in pending_request.args if isinstance(a, Submission)), None)
        loads = {name: _held(replica.routing_stats) for name, replica in by_name.items()}
        ranked = self._placement.rank(
            pending_request.metadata.internal_request_id,
            () if submission is None else submission.request.prompt,
            loads,
            avoid=[*self._out_of_service(by_name), *(() if submission is None else submission.avoid)],
        )
        return [[by_name[name]] for name in ranked]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """Called by Serve when a replica has accepted."""
        self._placement.routed(pending_request.metadata.internal_request_id, replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called by Serve when a call ended, however."""
        self._placement.done(internal_request_id)

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        """Called by Serve when the connection to a replica failed; it may be dead without being known to be."""
        super().on_replica_actor_unavailable(replica_id)
        self._cooling[replica_id.unique_id] = time.monotonic() + _COOLING_S

    def _out_of_service(self, by_name: dict[str, RunningReplica]) -> list[str]:
        now = time.monotonic()
        self._cooling = {name: until for name, until in self._cooling.items() if until > now}
        return [
            name
            for name, replica in by_name.items()
            if name in self._cooling or not replica.routing_stats.get("serving", True)
        ]


def _held(stats: dict[str, Any]) -> int:
    """Requests in a replica's engine when it last published; 0 before the first time."""
    return int(stats.get("num_waiting", 0)) + int(stats.get("num_running", 0))
