"""The Serve application: `build_app`, which Serve config files name, from validated settings to deployments.

Decides placement, autoscaling and time limits. Reads no file and touches no GPU: it may run where neither is.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from glm_cluster.config import ClusterConfig, DeviceName, ModelConfig
from glm_cluster.deploy.channel import ReturnAddress
from glm_cluster.deploy.ingress import GlmIngress
from glm_cluster.deploy.names import INGRESS, POOL, replica_names
from glm_cluster.deploy.pool import GlmPool
from glm_cluster.deploy.replica import GlmReplica
from glm_cluster.deploy.routing import GlmRequestRouter

_NO_LIMIT = 100_000  # calls at once; admission is the engine's business
_LOAD_PERIOD_S = 1.0  # how often replicas tell the routers their load
_HEALTH_PERIOD_S = 10.0  # three red checks in a row and Serve replaces a replica
_DRAIN_S = 30.0  # streams that last longer go on elsewhere, by re-entry
_START_ATTEMPTS = 3
_LOOK_BACK_S = 11.0  # autoscaling acts on the mean of this; Serve wants more than its 10 s of metrics


def build_app(args: Mapping[str, Any]) -> Application:
    """The application for `args`, the mapping of ClusterConfig."""
    return application(ClusterConfig.from_mapping(args), drain_s=_DRAIN_S, start_attempts=_START_ATTEMPTS)


def application(
    config: ClusterConfig, *, drain_s: float, start_attempts: int, progress_to: ReturnAddress | None = None
) -> Application:
    """An ingress over a deployment for each model. On an orderly stop a replica has `drain_s` to finish what it holds.

    Serve gives the application up when a deployment failed to start `start_attempts` times in a row. `progress_to`, an
    address on this host, hears how far the weights are loaded.
    """
    config = resolve_device(config)
    names = replica_names([model.name for model in config.models])
    replicas = [
        _replica(
            model, name, progress_to, num_fronts=config.num_ingresses, drain_s=drain_s, start_attempts=start_attempts
        )
        for model, name in zip(config.models, names, strict=True)
    ]
    ingress = serve.deployment(GlmIngress).options(
        name=INGRESS,
        num_replicas=config.num_ingresses,
        ray_actor_options={"num_cpus": max(model.cpus_per_rank for model in config.models)},
        max_ongoing_requests=_NO_LIMIT,
        graceful_shutdown_timeout_s=drain_s,
        max_constructor_retry_count=start_attempts,
    )
    return ingress.bind(config, *replicas, pool=_pool() if shares_budgets(config) else None)


def shares_budgets(config: ClusterConfig) -> bool:
    """Whether there are several fronts and budgets that they must not each give anew."""
    return config.num_ingresses > 1 and config.api_keys_file is not None


def _pool() -> Application:
    deployment = serve.deployment(GlmPool).options(
        name=POOL, num_replicas=1, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=_NO_LIMIT
    )
    return deployment.bind()


def _replica(
    model: ModelConfig,
    name: str,
    progress_to: ReturnAddress | None,
    *,
    num_fronts: int,
    drain_s: float,
    start_attempts: int,
) -> Application:
    deployment = serve.deployment(GlmReplica).options(
        name=name,
        ray_actor_options={"num_cpus": model.cpus_per_rank, "num_gpus": 0},
        placement_group_bundles=bundles(model),
        placement_group_strategy=model.placement,
        max_ongoing_requests=_NO_LIMIT,
        request_router_config=RequestRouterConfig(
            request_router_class=GlmRequestRouter,
            request_router_kwargs={"num_fronts": num_fronts},
            request_routing_stats_period_s=_LOAD_PERIOD_S,
        ),
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=model.engine.step_deadline_s + _HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=drain_s,
        max_constructor_retry_count=start_attempts,
        **scale(model),
    )
    return deployment.bind(model, progress_to)


def resolve_device(config: ClusterConfig) -> ClusterConfig:
    """Turn device `auto` into what the Ray cluster has now. A cluster that scales up from no GPU must say `cuda`.

    Models that leave it open get GPUs if there is one for every rank that is not to run on the CPU.
    """
    if all(model.engine.device != "auto" for model in config.models):
        return config
    gpus = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else 0
    num_ranks = sum(m.engine.tp * m.min_replicas for m in config.models if m.engine.device != "cpu")
    device: DeviceName = "cuda" if gpus >= num_ranks else "cpu"
    return replace(config, models=tuple(_on(model, device) for model in config.models))


def _on(model: ModelConfig, device: DeviceName) -> ModelConfig:
    if model.engine.device != "auto":
        return model
    return replace(model, engine=replace(model.engine, device=device))


def bundles(model: ModelConfig) -> list[dict[str, float]]:
    """One bundle per rank; the first also holds the replica, which needs no GPU."""
    cpus = model.cpus_per_rank
    gpu = {"GPU": 1.0} if model.engine.device == "cuda" else {}
    return [{"CPU": cpus * (2 if rank == 0 else 1), **gpu} for rank in range(model.engine.tp)]


def scale(model: ModelConfig) -> dict[str, Any]:
    """A fixed number of replicas, or Serve's autoscaling between two."""
    if model.min_replicas == model.max_replicas:
        return {"num_replicas": model.min_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": model.min_replicas,
            "max_replicas": model.max_replicas,
            "target_ongoing_requests": model.target_ongoing_requests,
            "upscale_delay_s": model.upscale_delay_s,
            "downscale_delay_s": model.downscale_delay_s,
            "look_back_period_s": _LOOK_BACK_S,
        }
    }
