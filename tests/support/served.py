"""`glm-cluster serve` as a user runs it: a process of its own, stopped by Ctrl-C, leaving nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Served:
    """A running `serve`."""

    process: subprocess.Popen[str]
    log: Path
    port: int
    grpc_port: int

    @property
    def url(self) -> str:
        """Where HTTP answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc(self) -> str:
        """Where gRPC answers."""
        return f"127.0.0.1:{self.grpc_port}"

    def post(self, path: str, body: dict[str, Any], timeout: float = 300) -> Any:
        """POST JSON, return JSON."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)

    def health(self) -> int:
        """Status of /health."""
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, distinct."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextmanager
def serve_command(log: Path, *arguments: str, **environment: str) -> Iterator[Served]:
    """Run `glm-cluster serve`, wait until it says it is ready, then press Ctrl-C and see that nothing is left."""
    port, grpc_port = free_ports(2)
    command = [sys.executable, "-m", "glm_cluster.cli", "serve", "--port", f"{port}", "--grpc-port", f"{grpc_port}"]
    shm = set(os.listdir("/dev/shm"))
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, *arguments], stdout=out, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
        )
    served = Served(process, log, port, grpc_port)
    family: list[psutil.Process] = []
    try:
        _wait_until_ready(served)
        yield served
    finally:
        family = _family(process)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()
    _, left = psutil.wait_procs(family, timeout=15)
    assert not left, f"still running: {[p.cmdline() for p in left]}"
    assert not set(os.listdir("/dev/shm")) - shm
    for used in (port, grpc_port):
        with socket.create_server(("127.0.0.1", used)):
            pass


def _wait_until_ready(served: Served, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while "Ctrl-C stops everything" not in served.log.read_text():
        assert served.process.poll() is None, f"serve ended early:\n{served.log.read_text()}"
        assert time.monotonic() < deadline, f"serve is not ready:\n{served.log.read_text()}"
        time.sleep(0.2)


def _family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Every process of the cluster: children, and Ray's daemons, which live in sessions of their own."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
