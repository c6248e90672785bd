"""Serve's request router for GlmReplica: `Placement` behind Ray Serve's interface."""

import time
from collections.abc import Mapping
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

from glm_cluster.deploy.channel import Submission
from glm_cluster.deploy.placement import Placement
from glm_cluster.deploy.routers import register

_COOLING_S = 2.0  # a replica that could not be reached is gone round this long


class GlmRequestRouter(RequestRouter):  # type: ignore[misc]  # ray ships no types
    """Orders a few replicas for each request, as `Placement` says; after them, all in service, then all there are.

    Serve makes a new list of candidates whenever a replica comes, goes or reports something new, and at no other time:
    only then is the whole list looked at.
    """

    def initialize_state(self, num_fronts: int = 1) -> None:
        """Called once by Serve."""
        register(self._deployment_id, self)
        self._placement = Placement(num_fronts=num_fronts)
        self._cooling: dict[str, float] = {}  # replica -> until when
        self._candidates: list[RunningReplica] = []
        self._in_service: list[RunningReplica] = []
        self._by_name: dict[str, RunningReplica] = {}
        self._stats: dict[str, Mapping[str, Any]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Serve tries the inner lists in order."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # or Serve asks again at once, for ever
        if candidate_replicas is not self._candidates:
            self._look_at(candidate_replicas)
        submission = next((a for a in pending_request.args if isinstance(a, Submission)), None)
        ranked = self._placement.rank(
            pending_request.metadata.internal_request_id,
            () if submission is None else submission.request.prompt,
            avoid=[*self._still_cooling(), *(() if submission is None else submission.avoid)],
        )
        return [*([self._by_name[name]] for name in ranked), self._in_service, candidate_replicas]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """Called by Serve when a replica has accepted."""
        self._placement.routed(pending_request.metadata.internal_request_id, replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called by Serve when a call ended, however."""
        self._placement.done(internal_request_id)

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """Called by Serve with what a replica held when it answered whether it takes a call."""
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        self._placement.correct(replica_id.unique_id, num_ongoing_requests)

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        """Called by Serve when the connection to a replica failed; it may be dead without being known to be."""
        super().on_replica_actor_unavailable(replica_id)
        self._cooling[replica_id.unique_id] = time.monotonic() + _COOLING_S

    def _look_at(self, candidates: list[RunningReplica]) -> None:
        self._candidates = candidates
        self._by_name = {replica.replica_id.unique_id: replica for replica in candidates}
        for name in self._stats.keys() - self._by_name.keys():
            del self._stats[name]
            self._placement.withdraw(name)
        for name, replica in self._by_name.items():
            if self._stats.get(name) != replica.routing_stats:  # one that is the same says nothing new
                self._stats[name] = replica.routing_stats
                self._take_report(name, replica.routing_stats)
        self._in_service = [replica for replica in candidates if _serves(replica.routing_stats)]

    def _take_report(self, name: str, stats: Mapping[str, Any]) -> None:
        if not _serves(stats):
            self._placement.withdraw(name)
            return
        waiting = int(stats.get("num_waiting", 0))
        self._placement.report(name, waiting + int(stats.get("num_running", 0)), waiting)

    def _still_cooling(self) -> list[str]:
        if self._cooling:
            now = time.monotonic()
            self._cooling = {name: until for name, until in self._cooling.items() if until > now}
        return list(self._cooling)


def _serves(stats: Mapping[str, Any]) -> bool:
    """Whether a replica has a group; one that has said nothing yet is taken to."""
    return bool(stats.get("serving", True))
