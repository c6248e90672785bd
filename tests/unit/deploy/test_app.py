"""What is asked of Ray for a set of settings."""

import pytest

from glm_cluster.config import ClusterConfig, ModelConfig
from glm_cluster.deploy.app import build_app, bundles, resolve_device, scale, shares_budgets
from glm_cluster.deploy.group import in_rank_order
from glm_cluster.errors import ConfigError


def config(**changes: object) -> ModelConfig:
    return ModelConfig.from_mapping({"model": "/m", "cpus_per_rank": 1, "device": "cpu", **changes})


def devices(*models: dict[str, object]) -> list[str]:
    cluster = ClusterConfig.from_mapping({"models": [{"model": f"/m{i}", **m} for i, m in enumerate(models)]})
    return [model.engine.device for model in resolve_device(cluster).models]


def test_the_first_bundle_has_room_for_the_replica_too():
    assert bundles(config(tp=3)) == [{"CPU": 2}, {"CPU": 1}, {"CPU": 1}]


def test_every_rank_gets_a_gpu_and_the_replica_none():
    asked = bundles(config(tp=2, device="cuda"))
    assert sum(bundle["GPU"] for bundle in asked) == 2


def test_auto_is_the_cpu_where_there_is_no_cluster_with_gpus():
    assert devices({"device": "auto"}, {"device": "cuda"}) == ["cpu", "cuda"]


@pytest.mark.parametrize(("gpus", "chosen"), [(2, "cpu"), (3, "cuda")])
def test_auto_is_cuda_where_every_rank_that_may_have_one_gets_a_gpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int, chosen: str
):
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"GPU": gpus})
    assert devices({"tp": 2}, {"device": "cpu", "tp": 8}, {}) == [chosen, "cpu", chosen]


def test_a_fixed_number_of_replicas_is_not_scaled():
    assert scale(config(min_replicas=2, max_replicas=2)) == {"num_replicas": 2}


def test_a_range_of_replicas_is_scaled():
    asked = scale(config(min_replicas=1, max_replicas=4, upscale_delay_s=3))["autoscaling_config"]
    assert (asked["min_replicas"], asked["max_replicas"], asked["upscale_delay_s"]) == (1, 4, 3)


def test_ranks_stay_together_by_node_with_the_replicas_first():
    assert in_rank_order({0: "b", 1: "a", 2: "b", 3: "a"}) == (0, 2, 1, 3)


def test_settings_are_checked_before_anything_is_built():
    with pytest.raises(ConfigError, match="unknown settings"):
        build_app({"model": "/m", "modle": 1})


def test_the_application_is_built_without_reading_the_model():
    """Serve builds it on a machine that may not have the checkpoint."""
    assert build_app({"model": "/nowhere", "device": "cpu"})


def test_two_models_may_not_be_deployed_under_one_name():
    models = [{"model": "/m", "model_name": "a/b"}, {"model": "/n", "model_name": "a b"}]
    with pytest.raises(ConfigError, match=r"models\[0\] and models\[1\] would both be deployed as GlmReplica-a-b"):
        build_app({"models": models})


def test_several_models_are_built_without_reading_any():
    assert build_app({"models": [{"model": "/nowhere"}, {"model": "/elsewhere", "task": "embed"}]})


@pytest.mark.parametrize(
    ("changes", "shares"),
    [
        ({"num_ingresses": 2, "api_keys_file": "/keys"}, True),
        ({"num_ingresses": 2}, False),
        ({"api_keys_file": "/keys"}, False),
    ],
)
def test_fronts_have_a_pool_where_there_are_budgets_to_share(changes: dict[str, object], shares: bool):
    settings = {"model": "/nowhere", "device": "cpu", **changes}
    assert shares_budgets(ClusterConfig.from_mapping(settings)) is shares
    assert build_app(settings)
