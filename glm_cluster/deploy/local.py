"""A whole cluster on this machine for as long as somebody wants it: started, waited for, stopped without a trace.

The only place that sets Ray's flags, which Ray reads when it is imported. Knows no terminal: it tells its caller
what it is doing.
"""

import math
import os
import random
import secrets
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from glm_cluster.config import ClusterConfig, ModelConfig
from glm_cluster.deploy.failure import error_within
from glm_cluster.deploy.files import SERVICERS
from glm_cluster.deploy.read_progress import ReadListener
from glm_cluster.errors import ConfigError, EngineUnavailable

_APP = "glm"
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PROXIED_HOSTS = ("127.0.0.1", "localhost", "0.0.0.0")
OBJECT_STORE_BYTES = 128 << 20  # we put nothing there; Ray would take a third of the memory
_FIRST_ANSWER_S = 60.0
_STREAMS_PER_CONNECTION = "1000"
_GRPC_MESSAGE_BYTES = str(256 << 20)  # an answer may be long; Serve would take requests of 2 GiB into memory too
_DRAIN_S = 1.0
_ASK_SERVE_S = 0.2  # how it is doing; an answer costs its controller and us 10 ms each, and both are busy
_SAID_OF_EVERY_STOP = r"ServeController\.(graceful_shutdown failed|\w+ failed.*killed by `ray\.kill`)"  # by the raylet
_INGRESS_PORTS = 64  # of each kind; one a front on this host
_RANGES = range(15000, 30000)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a running cluster is reached."""

    http_url: str
    grpc_address: str
    model_name: str  # the first of `models`
    models: tuple[ModelConfig, ...] = ()


def serve(
    *,
    config: ClusterConfig,
    host: str,
    port: int,
    grpc_port: int,
    on_stage: Callable[[str], None],
    on_read: Callable[[int, int], None],
    on_ready: Callable[[Endpoints], None],
) -> None:
    """Serve until a signal asks to stop, then stop everything this started. Call from the main thread.

    `on_stage` is told what is being done; `on_read`, while models load, the bytes of weights that all ranks together
    have read and those that they will.
    """
    set_ray_flags()
    check_host(host)
    reachable = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    names = [model.name for model in config.models]
    endpoints = Endpoints(f"http://{reachable}:{port}", f"{reachable}:{grpc_port}", names[0], config.models)
    try:
        with _signals_interrupt():
            try:
                on_stage("Starting Ray")
                start_ray(config)
                _interrupt_on_signals()  # Ray has put its own handler for SIGTERM in front
                start_serve(host, port, grpc_port)
                on_stage(f"Loading {', '.join(names)}")
                run_app(config, on_read)
                on_stage("Waiting for the first answer")
                wait_until_ready(endpoints.http_url)
                on_ready(endpoints)
                while True:
                    signal.pause()
            finally:
                _ignore_signals()
                on_stage("Stopping")
                try:
                    stop()
                finally:
                    write_usage_left(config)
    except KeyboardInterrupt:
        return


def set_ray_flags() -> None:
    """Ray's settings for one machine. What the user has set already stays."""
    ha_proxy = os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1" if sys.platform == "linux" else "0")
    http_ports, grpc_ports = free_range(_INGRESS_PORTS), free_range(_INGRESS_PORTS)
    flags = {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": ha_proxy,  # alone it is slower than neither
        "RAY_AUTH_MODE": "token",  # Ray listens on every address, and who reaches it can run code
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # or Ray would write one into the user's home
        "grpc_proxy": "",  # or the parts of the cluster would look for each other behind http_proxy
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS_SKIP_REGEX": _SAID_OF_EVERY_STOP,
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": _GRPC_MESSAGE_BYTES,
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "glm_cluster.api.headers.middlewares",
        "RAY_SERVE_HAPROXY_H2_FE_MAX_CONCURRENT_STREAMS": _STREAMS_PER_CONNECTION,
        "RAY_SERVE_HAPROXY_H2_BE_MAX_CONCURRENT_STREAMS": _STREAMS_PER_CONNECTION,
        # While no front is up HAProxy asks these; on Serve's own ports another cluster of this host would answer.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(http_ports.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(http_ports.stop - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(grpc_ports.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(grpc_ports.stop - 1),
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    }
    for name, value in flags.items():
        os.environ.setdefault(name, value)


def check_host(host: str) -> None:
    """Refuse an address that would never get ready: HAProxy reaches the fronts, which listen on `host`, locally."""
    if os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1" and host not in _PROXIED_HOSTS:
        raise ConfigError(f"host must be one of {', '.join(_PROXIED_HOSTS)}, not {host}; 0.0.0.0 listens everywhere")


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def free_range(size: int) -> range:
    """Neighbouring ports that nobody listens on now, below those the kernel hands out.

    Two clusters on one host must not share Serve's default range: gRPC binds with SO_REUSEPORT, so one cluster's
    ingress would take calls meant for the other's.
    """
    while True:
        start = random.randrange(_RANGES.start, _RANGES.stop - size)
        if all(_is_free(port) for port in range(start, start + size)):
            return range(start, start + size)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def start_ray(config: ClusterConfig) -> None:
    """A new one-node Ray cluster, never one that happens to run here."""
    import logging

    import ray

    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, logical_cpus(config)),  # placement only
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def logical_cpus(config: ClusterConfig) -> int:
    """What every replica and rank there may be takes, with the ingresses, and one to spare."""
    replicas = sum(model.cpus_per_rank * model.max_replicas * (model.engine.tp + 1) for model in config.models)
    ingresses = max(model.cpus_per_rank for model in config.models) * config.num_ingresses
    return math.ceil(replicas + ingresses) + 1


def start_serve(host: str, port: int, grpc_port: int) -> None:
    """Serve's controller and proxy."""
    import logging

    from ray import serve as ray_serve
    from ray.serve.config import gRPCOptions

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray_serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port},
        grpc_options=gRPCOptions(port=grpc_port, grpc_servicer_functions=list(SERVICERS)),
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )


def run_app(config: ClusterConfig, on_read: Callable[[int, int], None]) -> None:
    """Deploy and wait until every replica has made its first step."""
    from ray import serve as ray_serve
    from ray.serve.schema import ApplicationStatus

    from glm_cluster.deploy.app import application

    num_ranks = sum(model.min_replicas * model.engine.tp for model in config.models)
    with ReadListener.open(num_ranks, on_read) as listener:
        app = application(config, drain_s=_DRAIN_S, start_attempts=1, progress_to=listener.address)
        ray_serve.run_many([ray_serve.RunTarget(app, name=_APP)], wait_for_applications_running=False)
        while (found := ray_serve.status().applications[_APP]).status != ApplicationStatus.RUNNING:
            if found.status == ApplicationStatus.DEPLOY_FAILED:
                reasons = [found.message, *(deployment.message for deployment in found.deployments.values())]
                raise error_within("\n".join(reasons))
            listener.wait(_ASK_SERVE_S)
        listener.wait(0)


def wait_until_ready(http_url: str) -> None:
    """Wait until /health is green through the front door, which says that a token can be had."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says
    deadline = time.monotonic() + _FIRST_ANSWER_S
    while time.monotonic() < deadline:
        try:
            with direct.open(f"{http_url}/health", timeout=10):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.1)
    raise EngineUnavailable(f"{http_url}/health did not turn green in {_FIRST_ANSWER_S:g} s; see Ray's logs")


def stop() -> None:
    """Undo whatever of the above has happened. A signal cuts Serve's orderly part short, never Ray's end."""
    import ray
    from ray import serve as ray_serve

    if not ray.is_initialized():
        return
    try:
        with suppress(KeyboardInterrupt), _signals_interrupt():
            ray_serve.shutdown()
    finally:
        ray.shutdown()


def write_usage_left(config: ClusterConfig) -> None:
    """Write the usage records of requests that the end of a front process cut short; no next one may ever start."""
    from glm_cluster.api.inheritance import inherit_all

    if config.usage_log is not None:
        with suppress(OSError):
            inherit_all(Path(config.usage_log))


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """The first signal to stop raises KeyboardInterrupt, whatever the shell that started us had set."""
    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    _interrupt_on_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt_on_signals() -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        _ignore_signals()  # a second one must not end what the first has begun
        raise KeyboardInterrupt

    for number in _STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
            signal.signal(number, interrupt)


def _ignore_signals() -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
