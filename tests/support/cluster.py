"""A real cluster in a process of its own, and clients that compare what it answers with the engine offline."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
from support.ports import free_ports

MARK = "GLM_CLUSTER_TEST"  # in the environment of everything a cluster starts
_DRIVER = Path(__file__).with_name("cluster_driver.py")
REPLICA, INGRESS, RANK = "ServeReplica:glm:GlmReplica", "ServeReplica:glm:GlmIngress", "ray::Shard"


class RunningCluster:
    """One cluster. `close` asserts that nothing of it is left."""

    def __init__(self, args: dict[str, Any], *, nodes: list[int] | None = None, **env: str) -> None:
        self._mark = uuid4().hex
        self._port, self._grpc_port = free_ports(2)
        self.http_url = f"http://127.0.0.1:{self._port}"
        self.grpc_address = f"127.0.0.1:{self._grpc_port}"
        self._driver = subprocess.Popen(
            [sys.executable, str(_DRIVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, MARK: self._mark, **env},
            text=True,
        )
        try:
            self.ask("start", args=args, nodes=nodes)
        except BaseException:
            self.close()
            raise

    def ask(self, do: str, **given: Any) -> Any:
        """Have the driver do something; its answer."""
        command = {"do": do, "port": self._port, "grpc_port": self._grpc_port, **given}
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        self._driver.stdin.write(json.dumps(command) + "\n")
        self._driver.stdin.flush()
        reply = json.loads(self._driver.stdout.readline())
        if "error" in reply:
            raise AssertionError(f"{do}: {reply['error']}")
        return reply["ok"]

    def processes(self, title: str = "") -> list[psutil.Process]:
        """The cluster's processes whose command line contains `title`."""
        return [p for p in marked(self._mark) if title in command_line(p)]

    def healthy(self) -> bool:
        """What /health says."""
        try:
            return httpx.get(f"{self.http_url}/health", timeout=30).status_code == 200
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """Stop it in order, and check that it is gone: processes, ports, shared memory."""
        assert self._driver.stdin is not None
        self._driver.stdin.close()
        try:
            self._driver.wait(60)
        finally:
            left = {process: line for process in living_after(self._mark) if (line := command_line(process))}
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            assert not left, f"left behind: {[*left.values()]}"


def marked(mark: str) -> list[psutil.Process]:
    """The living processes with `mark` in their environment: a whole cluster, Ray's daemons too."""
    return [process for process in psutil.process_iter() if _has_mark(process, mark)]


def living_after(mark: str, timeout_s: float = 15) -> list[psutil.Process]:
    """Those of `marked` that have not ended after a while."""
    deadline = time.monotonic() + timeout_s
    while (living := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return living


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    except psutil.Error:
        return False


def command_line(process: psutil.Process) -> str:
    """What it was started as; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@dataclass(frozen=True)
class Case:
    """A request and the ids it must have, from the engine offline and alone."""

    prompt: tuple[int, ...]
    sampling: dict[str, Any]  # in the words of the HTTP API
    expected: tuple[int, ...]

    @property
    def body(self) -> dict[str, Any]:
        return {"model": "tiny", "prompt": list(self.prompt), "return_token_ids": True, **self.sampling}

    def token_by_token(self) -> "Case":
        """The same without guesses, which make a repetitive answer come at once: for what must fall into its midst."""
        return replace(self, sampling={**self.sampling, "prompt_lookup_num_tokens": 0})


async def stream_ids(
    client: httpx.AsyncClient, case: Case, *, on_tokens: Callable[[int], None] | None = None
) -> list[int]:
    """The ids of a streamed answer. A chunk may bring several; `on_tokens` hears how many."""
    ids: list[int] = []
    async with aclosing(events(client, case)) as chunks:
        async for chunk in chunks:
            new = chunk["choices"][0]["token_ids"]
            ids += new
            if on_tokens:
                on_tokens(len(new))
    return ids


async def events(client: httpx.AsyncClient, case: Case) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a streamed answer; an error inside the stream fails the test."""
    async with client.stream("POST", "/v1/completions", json={**case.body, "stream": True}) as response:
        assert response.status_code == 200, (await response.aread()).decode()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                assert "error" not in chunk, chunk
                if chunk["choices"]:
                    yield chunk
            elif line == "data: [DONE]":
                return
        raise AssertionError("the stream ended without [DONE]")


async def all_at_once(cluster: RunningCluster, cases: list[Case], **hooks: Any) -> list[list[int]]:
    """Stream every case at the same time."""
    limits = httpx.Limits(max_connections=len(cases))
    async with httpx.AsyncClient(base_url=cluster.http_url, timeout=120, limits=limits) as client:
        return await asyncio.gather(*(stream_ids(client, case, **hooks) for case in cases))


class AtToken:
    """Calls `act` once, in a thread, as soon as `count` tokens have come in over all streams."""

    def __init__(self, count: int, act: Callable[[], None]) -> None:
        self._left = count
        self._act = act
        self._thread = threading.Thread(target=self._fall)
        self.fell_at = 0.0  # on the monotonic clock

    def __call__(self, num_tokens: int) -> None:
        before = self._left
        self._left -= num_tokens
        if self._left <= 0 < before:
            self._thread.start()

    def _fall(self) -> None:
        self.fell_at = time.monotonic()
        self._act()

    def check(self) -> None:
        """Assert that it happened."""
        assert self._left <= 0, "the streams were over before the blow fell"
        self._thread.join()


def eventually(condition: Callable[[], bool], what: str, *, timeout_s: float = 180.0) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.1)
