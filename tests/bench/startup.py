"""How long `glm-cluster serve` takes to its first token, beside a Serve application that does nothing, started alike.

    .venv/bin/python tests/bench/startup.py [--runs 3] [serve's own arguments]

The two are started by turns, each from nothing to a green /health, so that both see the same machine. The one that does
nothing has the same flags, controller, proxies and HAProxy, and one deployment with an empty constructor. The last line
printed is one JSON document; results of record are in `results/`.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.served import COMMAND, free_ports  # noqa: E402

_LONGEST_S = 240.0


def main() -> None:
    options, arguments = _options()
    if options.nothing:
        serve_nothing(*options.nothing)
        return
    runs = []
    for _ in range(options.runs):
        runs.append({"nothing_s": _time_nothing(), "serve_s": _time_serve(arguments)})
        print(json.dumps(runs[-1]), file=sys.stderr)
    medians = {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
    extra = round(statistics.median(run["serve_s"] - run["nothing_s"] for run in runs), 2)
    print(json.dumps({**_about(options, arguments), "runs": runs, "median": medians, "extra_s": extra}))


def _options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--nothing", type=int, nargs=2, metavar=("PORT", "GRPC_PORT"), help=argparse.SUPPRESS)
    return parser.parse_known_args()


def _about(options: argparse.Namespace, arguments: list[str]) -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {
        "command": " ".join(["tests/bench/startup.py", "--runs", str(options.runs), *arguments]),
        "commit": commit.stdout.strip()[:12],
        "machine": f"{os.cpu_count()} cores {os.uname().machine}, {psutil.virtual_memory().total >> 30} GiB",
    }


def _time_serve(arguments: list[str]) -> float:
    port, grpc_port = free_ports(2)
    with _seconds_to_green(
        [COMMAND, "serve", "--port", f"{port}", "--grpc-port", f"{grpc_port}", *arguments], port
    ) as s:
        return s


def _time_nothing() -> float:
    port, grpc_port = free_ports(2)
    with _seconds_to_green([sys.executable, __file__, "--nothing", f"{port}", f"{grpc_port}"], port) as s:
        return s


@contextmanager
def _seconds_to_green(command: list[str], port: int) -> Iterator[float]:
    """Start it, and once /health is green give the seconds that took; stop it at the end."""
    started = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment)  # as a user has it: compiled once
    try:
        while not _is_green(port):
            if process.poll() is not None or time.monotonic() - started > _LONGEST_S:
                raise SystemExit(f"not ready: {' '.join(command)}")
            time.sleep(0.05)
        yield round(time.monotonic() - started, 2)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _is_green(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10):
            return True
    except OSError:
        return False


def serve_nothing(port: int, grpc_port: int) -> None:
    """What `serve` does, with an application that does nothing in the place of ours; until a signal."""
    from glm_cluster.config import ClusterConfig
    from glm_cluster.deploy import local

    class Nothing:
        async def __call__(self, request: object) -> str:
            return "nothing"

    local.set_ray_flags()  # before ray is imported
    from ray import serve

    local.start_ray(ClusterConfig.from_mapping({"model": "nothing"}))
    local.start_serve("127.0.0.1", port, grpc_port)
    serve.run(serve.deployment(Nothing).options(max_constructor_retry_count=1).bind(), name="glm", route_prefix="/")
    local.wait_until_ready(f"http://127.0.0.1:{port}")
    try:
        signal.pause()
    except KeyboardInterrupt:
        local.stop()


if __name__ == "__main__":
    main()
