"""The manifests in k8s/: KubeRay's schema as the API server applies it, the operator's own rules, and ours."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]
NAMES = ("laptop-cpu.yaml", "one-node-tp2.yaml")
SERVE_FILES = {"laptop-cpu.yaml": "demo.yaml", "one-node-tp2.yaml": "glm-4-9b-tp2.yaml"}
REQUIRED_FLAGS = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
HAPROXY_STOP_S = 35  # Serve never lets an ingress go in less under HAProxy
SUFFIXES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def manifest(name: str, manifests: dict[str, Manifest]) -> Manifest:
    return manifests[name]


def cluster(manifest: Manifest) -> dict[str, Any]:
    return manifest["spec"]["rayClusterConfig"]


def groups(manifest: Manifest) -> list[dict[str, Any]]:
    return [cluster(manifest)["headGroupSpec"], *cluster(manifest).get("workerGroupSpecs", [])]


def pods(manifest: Manifest) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in groups(manifest)]


def containers(manifest: Manifest) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for pod in pods(manifest):
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            yield pod, container


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container.get("env", [])}


def settings(manifest: Manifest) -> dict[str, Any]:
    (application,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    return application["args"]


def quantity(text: str) -> int:
    return int(text[:-2]) * SUFFIXES[text[-2:]]


def test_every_manifest_is_named_here(manifests: dict[str, Manifest]) -> None:
    assert set(manifests) == set(NAMES) == set(SERVE_FILES)


def test_schema_accepts(manifest: Manifest, ray_service_errors: Callable[[Manifest], list[str]]) -> None:
    assert ray_service_errors(manifest) == []


def set_at(manifest: Manifest, path: str, value: object) -> None:
    *parents, last = path.split(".")
    node: Any = manifest
    for part in parents:
        node = node[int(part) if part.isdigit() else part]
    node[last] = value


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("spec.serveConfig", "", "'serveConfig' was unexpected"),
        ("spec.rayClusterConfig.headGroupSpec.rayStartParams.num-cpus", 0, "0 is not of type 'string'"),
        ("spec.rayClusterConfig.authOptions.mode", "tokens", "'tokens' is not one of"),
        ("spec.rayClusterConfig.workerGroupSpecs.0.groupName", None, "'groupName' is a required property"),
        ("spec.rayClusterConfig.workerGroupSpecs.0.replicas", "1", "'1' is not of type 'integer'"),
        (
            "spec.rayClusterConfig.headGroupSpec.template.spec.containers.0.resources.limits",
            {"memory": "8 GB"},
            "does not match",
        ),
        (
            "spec.rayClusterConfig.headGroupSpec.template.spec.containers.0.env",
            [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}],
            "is there twice",
        ),
        ("spec.rayClusterConfig.headGroupSpec.template.spec.containers.0.Image", "x", "'Image' was unexpected"),
    ],
)
def test_schema_refuses(
    path: str,
    value: object,
    complaint: str,
    manifests: dict[str, Manifest],
    ray_service_errors: Callable[[Manifest], list[str]],
) -> None:
    broken = copy.deepcopy(manifests["one-node-tp2.yaml"])
    set_at(broken, path, value)
    assert any(complaint in error for error in ray_service_errors(broken)), ray_service_errors(broken)


def test_schema_sets_defaults_and_prunes_nulls(
    manifests: dict[str, Manifest], ray_service_errors: Callable[[Manifest], list[str]]
) -> None:
    """KubeRay's own samples leave these out: the API server fills them in before it validates."""
    sparse = copy.deepcopy(manifests["one-node-tp2.yaml"])
    (worker,) = cluster(sparse)["workerGroupSpecs"]
    del worker["minReplicas"], worker["maxReplicas"]
    worker["template"]["metadata"] = None
    assert ray_service_errors(sparse) == []


def test_operator_accepts_the_names(manifest: Manifest) -> None:
    """The operator appends to a RayService's name, so it allows 47 characters; all are DNS-1035 labels."""
    names = [manifest["metadata"]["name"], *(group["groupName"] for group in groups(manifest)[1:])]
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 47 for name in names), names


def test_operator_accepts_the_upgrade_strategy(manifest: Manifest) -> None:
    """A plain string in the CRD: the operator, not the schema, refuses a typo."""
    assert manifest["spec"]["upgradeStrategy"]["type"] in ("NewCluster", "None")
    assert "upgradeStrategy" not in cluster(manifest), "refused on clusters that a RayService makes"


def test_operator_turns_authentication_on(manifest: Manifest, root: Path) -> None:
    assert cluster(manifest)["authOptions"] == {"mode": "token"}
    pinned = re.search(r"^ray==(.*)$", (root / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert pinned
    assert cluster(manifest)["rayVersion"] == pinned[1]


def test_operator_accepts_the_start_parameters(manifest: Manifest) -> None:
    for group in groups(manifest):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert not {"labels", "redis-password"} & group["rayStartParams"].keys()
        assert "resources" not in group, "resources are taken from the container; in both places they are refused"


def test_operator_needs_no_more(manifest: Manifest) -> None:
    """None of the fields whose rules are not written down here."""
    assert not {"enableInTreeAutoscaling", "autoscalerOptions", "gcsFaultToleranceOptions"} & cluster(manifest).keys()
    assert all(not {"numOfHosts", "priority", "idleTimeoutSeconds"} & group.keys() for group in groups(manifest))


def test_serve_config_is_the_file(name: str, manifest: Manifest, root: Path) -> None:
    file = root / "deploy" / "serve" / SERVE_FILES[name]
    assert yaml.safe_load(manifest["spec"]["serveConfigV2"]) == yaml.safe_load(file.read_text(encoding="utf-8"))


def test_gpus_are_those_of_the_groups(manifest: Manifest) -> None:
    requested = 0
    for group in groups(manifest):
        for container in group["template"]["spec"]["containers"]:
            resources = container["resources"]
            gpus = resources["limits"].get("nvidia.com/gpu", 0)
            assert resources["requests"].get("nvidia.com/gpu", 0) == gpus, "an extended resource is not overcommitted"
            requested += gpus * group.get("replicas", 1)
    args = settings(manifest)
    needed = args.get("tp", 1) * args.get("max_replicas", 1) if args["device"] == "cuda" else 0
    assert requested == needed


def test_every_ray_container_has_the_flags(manifest: Manifest) -> None:
    seen = [environment(pod["containers"][0]) for pod in pods(manifest)]
    assert all(variables == seen[0] for variables in seen), "flags are read at import: the same on every node"
    assert REQUIRED_FLAGS.items() <= seen[0].items()
    assert not {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & seen[0].keys()


def test_ports_are_those_of_the_serve_config(manifest: Manifest) -> None:
    serve = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    wanted = {"serve": serve["http_options"]["port"], "grpc": serve["grpc_options"]["port"]}
    for pod in pods(manifest):
        ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
        assert wanted.items() <= ports.items()


def test_head_serves_only_when_alone(manifest: Manifest) -> None:
    has_workers = len(groups(manifest)) > 1
    assert (groups(manifest)[0]["rayStartParams"]["num-cpus"] == "0") is has_workers
    assert manifest["spec"].get("excludeHeadPodFromServeSvc", False) is has_workers


def test_shared_memory_fits_in_the_container(manifest: Manifest) -> None:
    for pod in pods(manifest):
        (shm,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
        assert shm["medium"] == "Memory"
        assert quantity(shm["sizeLimit"]) <= quantity(pod["containers"][0]["resources"]["limits"]["memory"]) // 2
        assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]


def test_model_is_where_replicas_and_ingresses_run(manifest: Manifest) -> None:
    """A head that runs neither reads no file of it: the application is built from its settings alone."""
    for group in groups(manifest):
        container = group["template"]["spec"]["containers"][0]
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert settings(manifest)["model"].startswith("/models/")
        if group["rayStartParams"].get("num-cpus") == "0":
            assert "/models" not in mounts
        else:
            assert mounts["/models"]["readOnly"] is True


def test_demo_model_is_fetched_where_it_is_looked_for(manifests: dict[str, Manifest]) -> None:
    (pod,) = pods(manifests["laptop-cpu.yaml"])
    (init,) = pod["initContainers"]
    assert init["command"] == ["glm-cluster", "demo-model", settings(manifests["laptop-cpu.yaml"])["model"]]


def test_mounts_have_volumes(manifest: Manifest) -> None:
    for pod, container in containers(manifest):
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}


def test_nothing_runs_as_root(manifest: Manifest, root: Path) -> None:
    dockerfile = (root / "deploy" / "image" / "Dockerfile").read_text(encoding="utf-8")
    user = re.search(r"^USER (\d+):(\d+)$", dockerfile, re.M)
    assert user
    for pod, container in containers(manifest):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsUser"] == int(user[1])
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_images_are_of_this_version(manifest: Manifest) -> None:
    from glm_cluster import __version__

    images = {container["image"] for _, container in containers(manifest)}
    assert images <= {f"glm-cluster:{__version__}", f"glm-cluster:{__version__}-cpu"}


def test_streams_outlive_a_stop(manifest: Manifest) -> None:
    """A pod is given longer than its drain, and an old cluster longer than the longest request."""
    from glm_cluster.config import ClusterConfig

    config = ClusterConfig.from_mapping(settings(manifest))
    assert manifest["spec"]["rayClusterDeletionDelaySeconds"] > config.request_timeout_s
    pod = pods(manifest)[-1]
    container = pod["containers"][0]
    pre_stop_s = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    drain_s = int(environment(container)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert pod["terminationGracePeriodSeconds"] > pre_stop_s + drain_s + HAPROXY_STOP_S - 1


def test_image_has_what_the_probes_call(root: Path) -> None:
    """KubeRay's readiness and liveness probes are `bash -c "wget ... | grep success"`."""
    dockerfile = (root / "deploy" / "image" / "Dockerfile").read_text(encoding="utf-8")
    (packages,) = re.findall(r"apt-get install ((?:.|\n)*?)&&", dockerfile)
    assert {"bash", "grep", "wget"} <= set(packages.split())
