"""Two raylets: replicas on both, then one group across both."""

from collections.abc import Callable
from typing import Any

import pytest
from support.cluster import Case, RunningCluster, all_at_once

MakeCases = Callable[..., list[Case]]
NODES = [3, 3]  # CPUs of each: room for one replica with its first rank, and for the ingress, but not for two replicas


@pytest.fixture(scope="module")
def cluster(start_cluster: Callable[..., RunningCluster], settings: Callable[..., dict[str, Any]]) -> RunningCluster:
    return start_cluster(settings(min_replicas=2, max_replicas=2, cpus_per_rank=1), nodes=NODES)


async def answers(cluster: RunningCluster, many: list[Case]) -> None:
    for case, ids in zip(many, await all_at_once(cluster, many), strict=True):
        assert tuple(ids) == case.expected


async def test_replicas_on_both_then_a_group_across_both(
    cluster: RunningCluster, settings: Callable[..., dict[str, Any]], cases: MakeCases
):
    many = cases(8, seed=10, max_tokens=(1, 60))
    assert len(set(cluster.ask("nodes_of_ranks"))) == 2
    await answers(cluster, many)
    cluster.ask("deploy", args=settings(tp=2, placement="STRICT_SPREAD", cpus_per_rank=1))
    nodes = cluster.ask("nodes_of_ranks")
    assert len(nodes) == len(set(nodes)) == 2
    await answers(cluster, many)
