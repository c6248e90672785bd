"""How long a front's event loop must wait for its turn while a long prompt is worked through.

    .venv/bin/python tests/bench/ingress.py --tokenizer DIR

DIR holds a tokenizer.json and a chat template. Sends each kind of long request to the HTTP application in this process,
over an engine that answers with one token, while a coroutine takes turn after turn. What counts is how much the thread
beside the loop computed between two turns, at most, and of several rounds the least: the rest is what neighbours on
the machine did. The last line printed is one JSON document.
"""

import argparse
import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.about import server_of  # noqa: E402

from glm_cluster.api.http import build_http_app  # noqa: E402
from glm_cluster.api.service import ServedModel, Service  # noqa: E402
from glm_cluster.api.window import EncodeWindow  # noqa: E402
from glm_cluster.bench.host import about  # noqa: E402
from glm_cluster.deploy.ingress import TURN_S  # noqa: E402
from glm_cluster.metrics import NoMeters  # noqa: E402
from glm_cluster.records import GenerationRequest, ModelInfo, TokenEvent  # noqa: E402
from glm_cluster.text.chat import ChatTemplate  # noqa: E402
from glm_cluster.text.tokenizer import Tokenizer  # noqa: E402

SENTENCE = "The ship’s company, 17 hands, went ashore at Reykjavík; nobody spoke. "
MEGABYTE = 1 << 20


class One:
    """An engine that answers with one token."""

    def __init__(self) -> None:
        self.num_prompt_tokens = 0

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        self.num_prompt_tokens = len(request.prompt)
        yield TokenEvent(request.request_id, request.attempt, 0, (65,), "length")


def main() -> None:
    options = _options()
    head = about(load_before=os.getloadavg()[0]) | {"command": "tests/bench/ingress.py --tokenizer DIR"}
    sys.setswitchinterval(TURN_S)
    print(json.dumps({**head, "bench": "ingress", "requests": asyncio.run(_measure(options))}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=12)
    return parser.parse_args()


async def _measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    engine, tokenizer = One(), Tokenizer.from_directory(options.tokenizer)
    window = EncodeWindow(tokenizer, NoMeters())
    model = ServedModel(
        info=ModelInfo(name="m", vocab_size=tokenizer.vocab_size, max_model_len=MEGABYTE, eos_token_ids=(1,)),
        tokenizer=tokenizer,
        template=ChatTemplate.from_directory(options.tokenizer, tokenizer),
        window=window,
        generator=engine,
    )

    app = build_http_app(Service(models=[model], meters=NoMeters()), server_of([model.info]), NoMeters())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bench") as client:
        found = {}
        await window.off_loop(lambda: None, size_bytes=MEGABYTE)  # so that its thread is there
        for name, (path, fields) in _requests().items():
            body = json.dumps({"model": "m", "max_tokens": 1, **fields}).encode()
            gaps = [await _longest_gap(client, path, body) for _ in range(options.rounds)]
            found[name] = {
                "body_bytes": len(body),
                "prompt_tokens": engine.num_prompt_tokens,
                "longest_gap_ms": round(min(gaps) * 1e3, 1),
            }
            print(name, found[name], file=sys.stderr, flush=True)
    window.close()
    return found


def _requests() -> dict[str, tuple[str, dict[str, object]]]:
    text = SENTENCE * (MEGABYTE // len(SENTENCE.encode()))
    turns = [text[start : start + 1000] for start in range(0, len(text), 1000)]
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return {
        "a short prompt": ("/v1/completions", {"prompt": SENTENCE}),
        "1 MiB of text": ("/v1/completions", {"prompt": text}),
        "1 MiB in one message": ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
        "1 MiB in a thousand messages": ("/v1/chat/completions", {"messages": messages}),
        "150,000 token ids": ("/v1/completions", {"prompt": [*range(100_000, 150_000)] * 3}),
    }


async def _longest_gap(client: httpx.AsyncClient, path: str, body: bytes) -> float:
    """Seconds computed beside the loop between two of its turns, at most, from sending a request to its answer."""
    gaps = [0.0]
    turning = asyncio.create_task(_turn(gaps))
    response = await client.post(path, content=body)
    turning.cancel()
    response.raise_for_status()
    return max(gaps)


async def _turn(gaps: list[float]) -> None:
    worker = next(thread for thread in threading.enumerate() if thread.name.startswith("encode"))
    clock = time.pthread_getcpuclockid(worker.ident)
    last, last_cpu = time.perf_counter(), time.clock_gettime(clock)
    while True:
        await asyncio.sleep(0)
        now, now_cpu = time.perf_counter(), time.clock_gettime(clock)
        gaps.append(min(now - last, now_cpu - last_cpu))
        last, last_cpu = now, now_cpu


if __name__ == "__main__":
    main()
