"""What `serve` on one machine decides before it starts anything."""

import pytest

from glm_cluster.config import ClusterConfig
from glm_cluster.deploy.local import check_host, logical_cpus
from glm_cluster.errors import ConfigError


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_addresses_that_haproxy_can_reach(host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    check_host(host)


@pytest.mark.parametrize("host", ["192.168.1.7", "::", "example.org"])
def test_an_address_behind_which_nothing_would_get_ready_is_refused(host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0"):
        check_host(host)
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    check_host(host)


def test_ray_is_given_room_for_every_model_at_its_largest():
    """Two replicas of one rank, one of four ranks at half a CPU each, two fronts; a replica is a process too."""
    models = [{"model": "/a", "max_replicas": 2, "cpus_per_rank": 1}, {"model": "/b", "tp": 4, "cpus_per_rank": 0.5}]
    config = ClusterConfig.from_mapping({"models": models, "num_ingresses": 2})
    assert logical_cpus(config) == 2 * 2 + 3 + 2 + 1
