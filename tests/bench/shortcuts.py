"""What the engine's short cuts bring: the prefix cache and guessing ahead, each by turns with the work without it.

    .venv/bin/python tests/bench/shortcuts.py [--model DIR|demo] [--dtype bfloat16] [--rounds 3]

prefix: 16 requests arrive together, 1,024 tokens that they share and 16 of their own; the time to the first token
where the shared ones were computed before, and where no two prompts begin alike. choices: 8 of one prompt of 200
tokens; the time until all have their first token, and where each has a salt of its own and computes for itself.
repetitive: one stream continues a text that repeats itself; strange: random ids at temperature 1, where every guess is
wrong. The last line printed is one JSON document; those of record are in `results/`.
"""

import argparse
import json
import os
import random
import shlex
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median

from glm_cluster.model.threads import prepare_threads, share_cores

prepare_threads()  # before torch

from glm_cluster.bench.host import about  # noqa: E402
from glm_cluster.config import EngineConfig  # noqa: E402
from glm_cluster.engine.engine import Engine, open_engine  # noqa: E402
from glm_cluster.launch import model_directory  # noqa: E402
from glm_cluster.records import GenerationRequest, SamplingParams  # noqa: E402

NUM_REQUESTS, SHARED, OWN = 16, 1024, 16
NUM_CHOICES, CHOSEN = 8, 200
NUM_OUT = 128
NUM_IDS = 20_000


class Bench:
    """One engine, and requests of prompts that it has never seen unless a work says so."""

    def __init__(self, model: Path, dtype: str) -> None:
        share_cores(1)
        settings = {"model": str(model), "dtype": dtype, "device": "cpu", "kv_cache_bytes": 2 << 30}
        self._engine: Engine = open_engine(EngineConfig.from_mapping({**settings, "max_model_len": 2048}))
        self._random = random.Random(0)
        self._names = count()
        self._run([self._ids(64)], num_out=8)

    def prefix(self, is_shared: bool) -> float:
        """The median time to the first token, in seconds."""
        shared = self._ids(SHARED)
        if is_shared:
            self._run([shared], num_out=1)
        prompts = [(shared if is_shared else self._ids(SHARED)) + self._ids(OWN) for _ in range(NUM_REQUESTS)]
        return median(self._run(prompts, num_out=1))

    def choices(self, is_shared: bool) -> float:
        """The time until all choices of a prompt have their first token, in seconds."""
        return max(self._run([self._ids(CHOSEN)] * NUM_CHOICES, num_out=1, are_apart=not is_shared))

    def repetitive(self, is_guessing: bool) -> float:
        """Tokens a second; greedy, so that what comes repeats itself as the prompt does."""
        return self._stream(self._ids(16) * 8, SamplingParams(max_tokens=NUM_OUT, temperature=0.0), is_guessing)

    def strange(self, is_guessing: bool) -> float:
        """Tokens a second where nothing repeats itself but by chance."""
        return self._stream(self._ids(128), SamplingParams(max_tokens=NUM_OUT, seed=next(self._names)), is_guessing)

    def _stream(self, prompt: list[int], sampling: SamplingParams, is_guessing: bool) -> float:
        arrivals: list[tuple[float, int]] = []
        self._engine.add(
            GenerationRequest(
                request_id=f"{next(self._names)}",
                prompt=tuple(prompt),
                sampling=sampling,
                max_drafts=None if is_guessing else 0,
            )
        )
        while self._engine.has_work:
            arrivals += [(time.perf_counter(), len(event.tokens)) for event in self._engine.step()]
        return sum(tokens for _, tokens in arrivals[1:]) / (arrivals[-1][0] - arrivals[0][0])

    def _run(self, prompts: list[list[int]], *, num_out: int, are_apart: bool = False) -> list[float]:
        """Seconds to the first token of each; those that are apart share no prefix."""
        names = {f"{next(self._names)}": prompt for prompt in prompts}
        sampling = SamplingParams(max_tokens=num_out, temperature=0.0)
        for name, prompt in names.items():
            salt = name if are_apart else None
            self._engine.add(
                GenerationRequest(request_id=name, prompt=tuple(prompt), sampling=sampling, cache_salt=salt)
            )
        started, first = time.perf_counter(), {}
        while self._engine.has_work:
            for event in self._engine.step():
                first.setdefault(event.request_id, time.perf_counter() - started)
        return [first[name] for name in names]

    def _ids(self, length: int) -> list[int]:
        return [self._random.randrange(100, NUM_IDS) for _ in range(length)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    load, model = os.getloadavg()[0], model_directory(options.model)
    bench = Bench(model, options.dtype)
    works: dict[str, Callable[[bool], float]] = {
        "prefix_ttft_s": bench.prefix,
        "choices_ttft_s": bench.choices,
        "repetitive_tokens_per_s": bench.repetitive,
        "strange_tokens_per_s": bench.strange,
    }
    figures = {}
    for name, work in works.items():
        turns = [(work(True), work(False)) for _ in range(options.rounds)]
        with_it, without = (round(median(column), 3) for column in zip(*turns, strict=True))
        ratio = round(median(a / b for a, b in turns), 3)
        figures[name] = {"with": with_it, "without": without, "ratio": ratio}
    command = shlex.join([Path(sys.argv[0]).name, *(Path(word).name for word in sys.argv[1:])])
    print(json.dumps({**about(load_before=load), "command": command, "model": model.name, **figures}))


if __name__ == "__main__":
    main()
