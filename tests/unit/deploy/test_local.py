"""What `serve` on one machine decides before it starts anything."""

import os

import pytest
from ray._private.ray_logging import LogDeduplicator

from glm_cluster.config import ClusterConfig
from glm_cluster.deploy.local import check_host, logical_cpus, set_ray_flags
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


@pytest.mark.parametrize(
    ("line", "is_shown"),
    [
        ("Task ServeController.graceful_shutdown failed. Error: The actor is dead.", False),
        ("Task ServeController.listen_for_change failed. Error: The actor was killed by `ray.kill`.", False),
        ("Task ServeController.listen_for_change failed. Error: The node it ran on died.", True),
    ],
)
def test_what_the_raylet_says_of_every_stop_is_not_shown(line: str, is_shown: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", {})
    set_ray_flags()
    filtering = LogDeduplicator(5, None, os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"])
    shown = filtering.deduplicate({"ip": "", "pid": "raylet", "lines": [line]})
    assert [text for batch in shown for text in batch["lines"]] == [line] * is_shown


@pytest.mark.parametrize("name", ["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT"])
def test_two_clusters_of_one_host_fall_back_to_their_own_proxies(name: str, monkeypatch: pytest.MonkeyPatch):
    """A cluster that was starting once answered with another one's models: both proxies listened on Serve's port."""
    from ray.serve._private import constants

    monkeypatch.setattr(os, "environ", {})
    set_ray_flags()
    assert int(os.environ[name]) != getattr(constants, name)
