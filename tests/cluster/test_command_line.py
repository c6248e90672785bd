"""`glm-cluster serve` as a person meets it: what it prints works when pasted, and Ctrl-C leaves nothing behind."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = str(Path(sys.executable).with_name("glm-cluster"))
START_S, STOP_S = 180.0, 60.0

pytestmark = [pytest.mark.cluster, pytest.mark.demo]


@dataclass(frozen=True)
class Served:
    process: "subprocess.Popen[str]"
    port: int
    grpc_port: int
    greeting: str


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as http, socket.create_server(("127.0.0.1", 0)) as grpc:
        return http.getsockname()[1], grpc.getsockname()[1]


@pytest.fixture(scope="module")
def served(demo_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    port, grpc_port = free_ports()
    log = tmp_path_factory.mktemp("serve") / "stderr"
    command = [COMMAND, "serve", "--port", str(port), "--grpc-port", str(grpc_port)]
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            yield Served(process, port, grpc_port, read_greeting(process, log))
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(STOP_S)


def read_greeting(process: "subprocess.Popen[str]", log: Path) -> str:
    """Read until the last line of it; a command that ends or hangs before is a failure that shows its log."""
    assert process.stdout
    lines: list[str] = []
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        if not line:
            break
        lines.append(line)
        if " chat --url " in line:
            return "".join(lines)
    pytest.fail(f"no greeting, exit status {process.poll()}:\n{log.read_text()}")


def printed(served: Served, program: str) -> str:
    (line,) = (line for line in served.greeting.split("\n") if line.startswith(program + " "))
    return line


def test_greeting_says_what_is_served(served: Served) -> None:
    assert f"http://127.0.0.1:{served.port}/v1" in served.greeting
    assert f"127.0.0.1:{served.grpc_port}" in served.greeting
    assert "SmolLM2-135M" in served.greeting


def test_printed_curl_line_answers(served: Served) -> None:
    answer = subprocess.run(
        ["bash", "-c", printed(served, "curl")], check=False, capture_output=True, text=True, timeout=60
    )
    assert "Paris" in answer.stdout


def test_printed_chat_line_answers(served: Served) -> None:
    """Lines on stdin that is no terminal: two questions, two answers, then the end of the input."""
    run = subprocess.run(
        printed(served, COMMAND).split(),
        input="What is the capital of France?\nAnd what is two and two?\n",
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.count("\n") >= 2


def readme_examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("index", [0, 1])
def test_readme_example_answers(index: int, served: Served) -> None:
    example = readme_examples()[index]
    program = example.replace(":8000", f":{served.port}").replace(":9000", f":{served.grpc_port}")
    assert program != example
    run = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert "Paris" in run.stdout, run.stderr


def test_second_cluster_on_the_port_is_refused(served: Served) -> None:
    command = [COMMAND, "serve", "--port", str(served.port), "--grpc-port", str(free_ports()[0])]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert run.returncode == 2
    assert f"port {served.port} on 127.0.0.1 is in use" in run.stderr


def test_interrupt_stops_everything(demo_directory: Path) -> None:
    """Ctrl-C while it serves: exit 0, and every process it started is gone, and so are its ports."""
    port, grpc_port = free_ports()
    command = [COMMAND, "serve", "--port", str(port), "--grpc-port", str(grpc_port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        while " chat --url " not in process.stdout.readline():
            assert process.poll() is None
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_S) == 0
    _, alive = psutil.wait_procs(started, timeout=10)
    assert [child.name() for child in alive] == []
    for number in (port, grpc_port):
        with socket.create_server(("127.0.0.1", number)):
            pass
