"""The request routers of this process, by deployment: what they were told of replicas, for whoever asks.

Stands apart from `routing`, which Serve copies into processes by value: each copy would have a registry of its own.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Protocol
from weakref import WeakValueDictionary

from glm_cluster.records import ReplicaLoad


class Router(Protocol):
    """As much of Serve's request router as is looked at."""

    @property
    def curr_replicas(self) -> Mapping[Any, Any]: ...


_ROUTERS: "WeakValueDictionary[Any, Router]" = WeakValueDictionary()


def register(deployment: Any, router: Router) -> None:
    """Make the router known; the newest of a deployment is the one that counts."""
    _ROUTERS[deployment] = router


def known_loads(deployment: Any) -> list[ReplicaLoad] | None:
    """What the replicas in service last told this process's router; None while it has none for the deployment."""
    if (router := _ROUTERS.get(deployment)) is None:
        return None
    reports = [replica.routing_stats for replica in list(router.curr_replicas.values())]
    return [_load(stats) for stats in reports if "num_blocks" in stats]


def _load(stats: Mapping[str, Any]) -> ReplicaLoad:
    return ReplicaLoad(**{field.name: stats[field.name] for field in fields(ReplicaLoad)})
