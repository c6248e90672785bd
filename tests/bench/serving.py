"""What serving the demo model costs: start-up, tokens per second, and CPU per token outside the engine.

    .venv/bin/python tests/bench/serving.py [--dtype bfloat16] [--tp 1] [--tokens 64]

Starts `glm-cluster serve`, streams greedy completions that run to `--tokens` with 1, 16 and 64 clients, and reads each
process's CPU time from the kernel. What the processes spend when nobody asks for anything is measured too: the fewer
tokens an engine makes in a second, the more of it falls to each. The last line printed is one JSON document; results
of record are in `results/`.
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.served import Served, serve_command  # noqa: E402

ROLES = {"haproxy": "haproxy", "GlmIngress": "ingress", "GlmReplica": "replica", "ray::Shard": "engine"}
IDLE_S = 20.0


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        log, started = Path(folder) / "log", time.monotonic()
        with serve_command(log, "--dtype", options.dtype, "--tp", str(options.tp)) as served:
            report = {"ready_s": round(time.monotonic() - started, 1), "runs": []}
            model = served.model_name()
            asyncio.run(_load(served, model, 1, 8))  # first requests pay for imports and caches
            idle = _idle(served)
            report["idle_cpu_ms_per_s"] = {role: round(share * 1e3, 1) for role, share in idle.items()}
            for clients in (1, 16, 64):
                report["runs"].append(_measure(served, model, clients, options.tokens, idle))
    print(json.dumps({**_about(options), **report}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    return parser.parse_args()


def _about(options: argparse.Namespace) -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {
        "command": f"tests/bench/serving.py --dtype {options.dtype} --tp {options.tp} --tokens {options.tokens}",
        "commit": commit.stdout.strip()[:12],
        "machine": f"{os.cpu_count()} cores {platform.machine()}, {psutil.virtual_memory().total >> 30} GiB",
    }


def _idle(served: Served) -> dict[str, float]:
    """CPU seconds a second of each role while nobody asks for anything."""
    before, started = _cpu_seconds(served), time.monotonic()
    time.sleep(IDLE_S)
    wall = time.monotonic() - started
    return {role: (seconds - before.get(role, 0)) / wall for role, seconds in _cpu_seconds(served).items()}


def _measure(served: Served, model: str, clients: int, num_tokens: int, idle: Mapping[str, float]) -> dict[str, object]:
    before, started = _cpu_seconds(served), time.monotonic()
    streams = asyncio.run(_load(served, model, clients, num_tokens))
    wall = time.monotonic() - started
    spent = {role: seconds - before.get(role, 0) for role, seconds in _cpu_seconds(served).items()}
    outside = sum(seconds for role, seconds in spent.items() if role != "engine")
    background = wall * sum(share for role, share in idle.items() if role != "engine")
    total = sum(count for count, _ in streams)
    firsts = sorted(first for _, first in streams)
    return {
        "clients": clients,
        "tokens": total,
        "tokens_per_s": round(total / wall, 1),
        "first_token_p50_s": round(firsts[len(firsts) // 2], 3),
        "cpu_us_per_token": {role: round(seconds / total * 1e6) for role, seconds in spent.items()},
        "cpu_us_per_token_outside_engine": round(outside / total * 1e6),
        "of_it_above_idle": round((outside - background) / total * 1e6),
    }


async def _load(served: Served, model: str, clients: int, num_tokens: int) -> list[tuple[int, float]]:
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=served.url, timeout=600, limits=limits) as client:
        return await asyncio.gather(*(_stream(client, model, i, num_tokens) for i in range(clients)))


async def _stream(client: httpx.AsyncClient, model: str, index: int, num_tokens: int) -> tuple[int, float]:
    """Tokens received and seconds to the first of them."""
    prompt = f"{index} ships went out to sea that morning, and " * 4
    body = {"model": model, "prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "stream": True}
    started, first, usage = time.monotonic(), 0.0, None
    body["stream_options"] = {"include_usage": True}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.monotonic() - started
                usage = json.loads(line[6:]).get("usage") or usage
    assert usage is not None
    return usage["completion_tokens"], first


def _cpu_seconds(served: Served) -> dict[str, float]:
    """CPU time so far of the processes on a token's way, by role."""
    spent: dict[str, float] = {}
    for process in served.processes():
        title = " ".join(process.cmdline())
        role = next((role for word, role in ROLES.items() if word in title), None)
        if role is not None:
            times = process.cpu_times()
            spent[role] = spent.get(role, 0) + times.user + times.system
    return spent


if __name__ == "__main__":
    main()
