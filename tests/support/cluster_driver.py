"""A cluster in a process of its own, because Ray's flags are read when it is imported. Run by `support.cluster`.

Reads one JSON command a line and answers each with one JSON line. The first says which cluster to start.
"""

import json
import os
import sys
import urllib.request
from typing import Any

from glm_cluster.config import ClusterConfig
from glm_cluster.deploy import local


def start(command: dict[str, Any]) -> None:
    local.set_ray_flags()
    config = ClusterConfig.from_mapping(command["args"])
    if nodes := command["nodes"]:
        start_nodes(nodes)
    else:
        local.start_ray(config)
    local.start_serve("127.0.0.1", command["port"], command["grpc_port"])
    deploy(command)


def start_nodes(nodes: list[int]) -> None:
    """Several raylets on this machine; the first is the head and this driver's own."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for num_cpus in nodes:
        for name in ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT"):
            os.environ[name] = str(local.free_port())
        cluster.add_node(num_cpus=num_cpus, object_store_memory=local.OBJECT_STORE_BYTES, include_dashboard=False)
    ray.init(address=cluster.address, log_to_driver=False)
    start_nodes.cluster = cluster  # kept for the life of the process


def deploy(command: dict[str, Any]) -> None:
    local.run_app(ClusterConfig.from_mapping(command["args"]), lambda done, total: None)
    local.wait_until_ready(f"http://127.0.0.1:{command['port']}")


def replicas() -> list[Any]:
    """The actor handles of the running replicas."""
    import ray

    named = [n for n in ray.util.list_named_actors(all_namespaces=True) if "glm#GlmReplica" in n["name"]]
    return [ray.get_actor(n["name"], namespace=n["namespace"]) for n in named]


def loads() -> list[dict[str, Any]]:
    """What each replica publishes to the routers, now."""
    import ray

    return ray.get([replica.record_routing_stats.remote() for replica in replicas()])


def num_replicas() -> int:
    """Replicas that Serve counts as running."""
    from ray import serve

    (application,) = serve.status().applications.values()
    deployments = [d for name, d in application.deployments.items() if name.startswith("GlmReplica")]
    return sum(deployment.replica_states.get("RUNNING", 0) for deployment in deployments)


def nodes_of_ranks() -> list[str]:
    """The node of every rank alive."""
    from ray._private.state import actors

    return [
        a["Address"]["NodeID"] for a in actors().values() if a["State"] == "ALIVE" and a["ActorClassName"] == "Shard"
    ]


def num_submissions() -> float:
    """How often an engine was handed requests, as Prometheus would scrape it."""
    import ray

    total = 0.0
    for node in ray.nodes():
        page = urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics")
        lines = page.read().decode().splitlines()
        total += sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith("ray_glm_engine_submission_batch_size_count")
        )
    return total


COMMANDS = {
    "num_submissions": num_submissions,
    "loads": loads,
    "num_replicas": num_replicas,
    "nodes_of_ranks": nodes_of_ranks,
}


def answer(command: dict[str, Any]) -> Any:
    match command["do"]:
        case "start":
            return start(command)
        case "deploy":
            return deploy(command)
        case name:
            return COMMANDS[name]()


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints where it likes
    try:
        for line in sys.stdin:
            try:
                reply = {"ok": answer(json.loads(line))}
            except Exception as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), file=out, flush=True)
    finally:
        local.stop()


if __name__ == "__main__":
    main()
