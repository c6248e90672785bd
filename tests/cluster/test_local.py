"""`serve` on one machine: what it says, and that nothing of it is left however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
from support.cluster import INGRESS, MARK, command_line, eventually, marked
from support.ports import free_ports

from glm_cluster.api.ledger import ledger_directory

_SCRIPT = """
import json, signal, sys
from dataclasses import asdict
from glm_cluster.config import ClusterConfig
from glm_cluster.deploy.local import serve
from glm_cluster.errors import GlmError
def say(**what): print(json.dumps(what), flush=True)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
settings = json.loads(sys.argv[1])
try:
    config = ClusterConfig.from_mapping(settings.pop("args"))
    serve(config=config, **settings, on_stage=lambda s: say(stage=s),
          on_read=lambda done, total: say(read=done, of=total), on_ready=lambda e: say(ready=asdict(e)))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the last of many may come when all is over
except GlmError as error:
    say(error=type(error).__name__, message=error.message)
    sys.exit(2)
say(returned=True)
"""


class Serving:
    """A process that serves, and what it prints."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._mark = uuid4().hex
        self.ports = free_ports(2)
        settings = {"args": args, "host": "127.0.0.1", "port": self.ports[0], "grpc_port": self.ports[1]}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, json.dumps(settings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, MARK: self._mark, "http_proxy": "http://127.0.0.1:9"},  # not asked about ourselves
            text=True,
        )

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it says; lines that are not ours fail the test, because a user would see them."""
        assert self.process.stdout is not None
        return map(json.loads, self.process.stdout)

    def up_to(self, key: str) -> Iterator[dict[str, Any]]:
        """What it says, to the first line with that key."""
        for line in self.lines():
            yield line
            if key in line:
                return

    def until(self, key: str) -> dict[str, Any]:
        return next(line for line in self.lines() if key in line)

    def left(self) -> list[psutil.Process]:
        return marked(self._mark)


@pytest.fixture
def serving() -> Iterator[Callable[[dict[str, Any]], Serving]]:
    started: list[Serving] = []

    def start(args: dict[str, Any]) -> Serving:
        started.append(Serving(args))
        return started[-1]

    yield start
    for one in started:
        for process in one.left():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        one.process.wait(10)
        one.process.stdout.close()


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def nothing_left(one: Serving) -> None:
    eventually(lambda: not one.left(), "every process is gone", timeout_s=30)
    for port in one.ports:
        assert port not in {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_without_a_trace(serving, settings: Callable[..., dict[str, Any]], number: signal.Signals):
    one = serving(settings(tp=2))
    said = list(one.up_to("ready"))
    assert_all_was_read([(line["read"], line["of"]) for line in said if "read" in line], settings()["model"])
    endpoints = said[-1]["ready"]
    assert endpoints["model_name"] == "tiny"
    reply = httpx.post(
        endpoints["http_url"] + "/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 2}, timeout=30
    )
    assert reply.status_code == 200
    segments = {p.name for p in Path("/dev/shm").iterdir() if any(_maps(q, p) for q in one.left())}
    one.process.send_signal(number)
    assert one.until("returned")
    assert one.process.wait(30) == 0
    nothing_left(one)
    assert not segments & shared_memory()


def test_what_a_killed_front_left_is_recorded_at_the_end(
    serving, settings: Callable[..., dict[str, Any]], tmp_path: Path
):
    """There may be no next front to write it."""
    log = tmp_path / "usage"
    one = serving(settings(usage_log=str(log)))
    url = one.until("ready")["ready"]["http_url"]
    body = {"model": "tiny", "prompt": [9, 9], "max_tokens": 1000, "stream": True, "ignore_eos": True}
    body |= {"prompt_lookup_num_tokens": 0}
    with ExitStack() as open_streams:
        streams = [httpx.stream("POST", url + "/v1/completions", json=body, timeout=30) for _ in range(8)]
        lines = [open_streams.enter_context(stream).iter_lines() for stream in streams]
        for line in lines:
            next(line)
        (front,) = (process for process in one.left() if INGRESS in command_line(process))
        front.kill()
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(60) == 0
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert len({record["request_id"] for record in records}) == len(records) == 8
    assert "front_died" in {record["status"] for record in records}
    assert not ledger_directory(log).exists()


def assert_all_was_read(shown: list[tuple[int, int]], model: str) -> None:
    """What a person saw of the loading: never backwards, and all bytes of both ranks before it was ready."""
    assert shown
    assert shown == sorted(shown)
    done, total = shown[-1]
    stored = (Path(model) / "model.safetensors").stat().st_size
    assert done == total
    assert stored * 0.9 < total < stored * 1.5, "two halves, and what each rank holds whole"


def _maps(process: psutil.Process, path: Path) -> bool:
    try:
        return any(m.path == str(path) for m in process.memory_maps())
    except psutil.Error:
        return False


def test_a_signal_while_it_starts_ends_it_too(serving, settings: Callable[..., dict[str, Any]]):
    one = serving(settings())
    next(line for line in one.lines() if line.get("stage", "").startswith("Loading"))
    one.process.send_signal(signal.SIGINT)
    assert one.until("returned")
    assert one.process.wait(60) == 0
    nothing_left(one)


def test_a_second_signal_hurries_it_without_a_trace(serving, settings: Callable[..., dict[str, Any]]):
    one = serving(settings())
    one.until("ready")
    one.process.send_signal(signal.SIGINT)
    next(line for line in one.lines() if line.get("stage") == "Stopping")
    for _ in range(5):
        time.sleep(0.2)
        one.process.send_signal(signal.SIGINT)
    assert one.until("returned")
    assert one.process.wait(30) == 0
    nothing_left(one)


def test_a_checkpoint_that_cannot_load_is_a_sentence(serving, settings: Callable[..., dict[str, Any]], tmp_path: Path):
    source = Path(settings()["model"])
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    one = serving(settings(model=str(tmp_path)))
    said = one.until("error")
    assert said["error"] == "CheckpointError"
    assert "model.safetensors" in said["message"]
    assert one.process.wait(60) == 2
    nothing_left(one)
