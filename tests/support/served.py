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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from support.cluster import MARK, command_line, living_after, marked
from support.ports import free_ports

COMMAND = str(Path(sys.executable).with_name("glm-cluster"))


@dataclass(frozen=True)
class Served:
    """A running `serve`."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int
    grpc_port: int
    mark: str  # in the environment of everything it started

    def processes(self) -> list[psutil.Process]:
        """Everything it started that still runs."""
        return marked(self.mark)

    @property
    def greeting(self) -> str:
        """All it has printed; at the end, the lines to paste."""
        return self.log.read_text()

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

    def model_name(self) -> str:
        """The name of the model it serves."""
        with urllib.request.urlopen(self.url + "/v1/models", timeout=30) as answer:
            return str(json.load(answer)["data"][0]["id"])

    def health(self) -> int:
        """Status of /health."""
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@contextmanager
def serve_command(log: Path, *arguments: str, **environment: str) -> Iterator[Served]:
    """Run `glm-cluster serve`, wait until it greets, then press Ctrl-C and see that it ends well and leaves nothing."""
    port, grpc_port = free_ports(2)
    mark = uuid4().hex
    command = [COMMAND, "serve", "--port", f"{port}", "--grpc-port", f"{grpc_port}", *arguments]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, MARK: mark, **environment}
        )
    served = Served(process, log, port, grpc_port, mark)
    segments: set[Path] = set()
    try:
        _wait_until_ready(served)
        yield served
    finally:
        segments = {path for one in marked(mark) for path in _shared_memory(one)}
        status = _interrupt(process)
        left = _left(mark)
    assert status == 0, f"exit status {status}:\n{served.greeting}"
    assert not left, f"still running: {left}"
    assert not [path for path in segments if path.exists()]
    for used in (port, grpc_port):
        with socket.create_server(("127.0.0.1", used)):
            pass


def _wait_until_ready(served: Served, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while " chat --url " not in served.greeting:
        assert served.process.poll() is None, f"serve ended early:\n{served.greeting}"
        assert time.monotonic() < deadline, f"serve is not ready:\n{served.greeting}"
        time.sleep(0.2)


def _shared_memory(process: psutil.Process) -> set[Path]:
    try:
        return {Path(mapped.path) for mapped in process.memory_maps() if mapped.path.startswith("/dev/shm/")}
    except psutil.Error:
        return set()


def _interrupt(process: "subprocess.Popen[bytes]") -> int:
    """Press Ctrl-C; the exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(60)
    finally:
        process.kill()


def _left(mark: str) -> list[str]:
    """What still runs after a while, as it was started; it is killed."""
    alive = living_after(mark)
    named = [command_line(process) for process in alive]
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return named
