"""How long `glm-cluster serve` takes to its first token, beside a Serve application that does nothing, started alike.

    .venv/bin/python tests/bench/startup.py [--runs 3] [serve's own arguments]

The two are started by turns, each from nothing to a green /health, so that both see the same machine. The one that does
nothing has the same flags, controller, proxies and HAProxy, and one deployment with an empty constructor. The last line
printed is one JSON document; results of record are in `results/`. The CPU time of all processes tells how busy the
machine was with others.
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
from pathlib import Path
from uuid import uuid4

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.cluster import MARK, marked  # noqa: E402
from support.ports import free_ports  # noqa: E402
from support.served import COMMAND  # noqa: E402

_LONGEST_S = 240.0


def main() -> None:
    options, arguments = _options()
    if options.nothing:
        serve_nothing(*options.nothing)
        return
    runs = []
    for _ in range(options.runs):
        (nothing, nothing_cpu), (served, served_cpu) = _start_nothing(), _start_serve(arguments)
        runs.append({"nothing_s": nothing, "serve_s": served, "nothing_cpu_s": nothing_cpu, "serve_cpu_s": served_cpu})
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


def _start_serve(arguments: list[str]) -> tuple[float, float]:
    port, grpc_port = free_ports(2)
    return _start([COMMAND, "serve", "--port", f"{port}", "--grpc-port", f"{grpc_port}", *arguments], port)


def _start_nothing() -> tuple[float, float]:
    port, grpc_port = free_ports(2)
    return _start([sys.executable, __file__, "--nothing", f"{port}", f"{grpc_port}"], port)


def _start(command: list[str], port: int) -> tuple[float, float]:
    """Seconds until /health is green, and the CPU seconds spent by then; it is stopped again."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment[MARK] = mark = uuid4().hex
    quiet = subprocess.DEVNULL
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment)
    try:
        while not _is_green(port):
            if process.poll() is not None or time.monotonic() - started > _LONGEST_S:
                raise SystemExit(f"not ready: {' '.join(command)}")
            time.sleep(0.05)
        seconds = time.monotonic() - started
        return round(seconds, 2), round(sum(map(_cpu_seconds, marked(mark))), 2)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:4])  # its own and that of its children that have ended
    except psutil.Error:
        return 0.0


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
