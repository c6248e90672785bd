"""Our engine beside llama.cpp and OpenVINO GenAI, by turns in one window: tokens per second, medians and ratios.

    .venv/bin/python tests/bench/peers.py --model DIR [--dtype bfloat16] [--quantization none] [--rounds 3]
        [--works WORK ...] [--llama-bench FILE --gguf FILE ...] [--openvino-python FILE --openvino-model DIR ...]

DIR holds the checkpoint; a GGUF file and OpenVINO's directory hold the same model in the peer's own format. The peers
are installed by hand, outside this checkout: llama.cpp with `llama-batched-bench` beside `llama-bench`, OpenVINO in an
environment whose Python has `openvino-genai`. The last line printed is one JSON document; those of record are in
`results/`. Only the ratios mean something on a machine that others use too, and only with figures of one window.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from glm_cluster.model.threads import prepare_threads, share_cores, usable_cores

prepare_threads()  # before torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Requests that arrive together. What counts of them is told by `rate`."""

    num_requests: int
    num_in: int
    num_out: int

    def rate(self, first_s: float, whole_s: float) -> float:
        """Prompt tokens of a prefill, what follows one stream's first token, or a job's whole output, per second."""
        if self.num_out == 1:
            return self.num_in / first_s
        if self.num_requests == 1:
            return (self.num_out - 1) / (whole_s - first_s)
        return self.num_requests * self.num_out / whole_s


WORKS = {
    "decode1": Work(num_requests=1, num_in=128, num_out=128),
    "job16": Work(num_requests=16, num_in=128, num_out=128),
    "prefill1024": Work(num_requests=1, num_in=1024, num_out=1),
}
WARM_UP = Work(num_requests=16, num_in=128, num_out=4)


PEER_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}  # ours are ours


class Contestant(Protocol):
    """Does a work and says how fast it was."""

    def tokens_per_s(self, work: Work) -> float: ...


class Ours:
    """An engine of one rank in this process. Prompts are other ones each time, so that no cached prefix helps."""

    def __init__(self, directory: Path, dtype: str, quantization: str) -> None:
        from glm_cluster.config import EngineConfig
        from glm_cluster.engine.engine import open_engine
        from glm_cluster.text.tokenizer import Tokenizer

        share_cores(1)
        self._tokenizer = Tokenizer.from_directory(directory)
        settings = {"model": str(directory), "dtype": dtype, "device": "cpu", "kv_cache_bytes": 1 << 30}
        settings |= {"quantization": quantization, "speculative_tokens": 0}  # like with like
        self._engine = open_engine(EngineConfig.from_mapping(settings))
        self._seeds = count()
        self.tokens_per_s(WARM_UP)

    def tokens_per_s(self, work: Work) -> float:
        from glm_cluster.bench.prompts import draw_ids
        from glm_cluster.records import GenerationRequest, SamplingParams

        sampling = SamplingParams(max_tokens=work.num_out, temperature=0.0)
        seed = next(self._seeds)
        prompts = draw_ids(self._tokenizer, count=work.num_requests, length=work.num_in, seed=seed)
        started, first = time.perf_counter(), None
        for index, prompt in enumerate(prompts):
            request_id = f"peers-{seed}-{index}"
            self._engine.add(GenerationRequest(request_id=request_id, prompt=prompt, sampling=sampling))
        while self._engine.has_work:
            if self._engine.step() and first is None:
                first = time.perf_counter()
        assert first is not None
        return work.rate(first - started, time.perf_counter() - started)


class LlamaCpp:
    """Its own benchmarks, which warm up, and sample nothing: a process for each work, that reads a cached file."""

    def __init__(self, bench: Path, gguf: Path) -> None:
        self._bench, self._gguf = bench, gguf

    def tokens_per_s(self, work: Work) -> float:
        if work.num_requests > 1:
            return self._job(work)
        sizes = f"-p {work.num_in} -n 0" if work.num_out == 1 else f"-p 0 -n {work.num_out} -d {work.num_in}"
        return float(json.loads(self._run(self._bench, f"{sizes} -r 1 -o json"))[0]["avg_ts"])

    def _job(self, work: Work) -> float:
        slots = work.num_requests * (work.num_in + work.num_out)
        sizes = f"-c {slots} -b 2048 -ub 512 -npp {work.num_in} -ntg {work.num_out} -npl {work.num_requests}"
        said = self._run(self._bench.with_name("llama-batched-bench"), f"{sizes} --output-format jsonl")
        row = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
        return work.rate(row["t_pp"], row["t"])

    def _run(self, program: Path, arguments: str) -> str:
        command = [str(program), "-m", str(self._gguf), "-t", str(usable_cores()), *arguments.split()]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=PEER_ENVIRONMENT).stdout


class OpenVino:
    """A worker in its own environment, which keeps its model loaded between works."""

    def __init__(self, worker: "subprocess.Popen[str]") -> None:
        self._worker = worker
        self.tokens_per_s(WARM_UP)

    def tokens_per_s(self, work: Work) -> float:
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        print(work.num_requests, work.num_in, work.num_out, file=self._worker.stdin, flush=True)
        return work.rate(**json.loads(self._worker.stdout.readline()))


@contextmanager
def open_vino(python: Path, directory: Path) -> Iterator[OpenVino]:
    """Start the worker; at the end close its input, which ends it, and wait."""
    script = Path(__file__).with_name("peers_openvino.py")
    command = [str(python), str(script), str(directory), "--threads", str(usable_cores())]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=PEER_ENVIRONMENT) as worker:
        yield OpenVino(worker)


def main() -> None:
    options, load_before = _options(), os.getloadavg()[0]
    with ExitStack() as stack:
        contestants: dict[str, Contestant] = {"ours": Ours(options.model, options.dtype, options.quantization)}
        for file in options.gguf:
            contestants[f"llama.cpp {file.stem}"] = LlamaCpp(options.llama_bench, file)
        for directory in options.openvino_model:
            contestants[f"openvino {directory.name}"] = stack.enter_context(
                open_vino(options.openvino_python, directory)
            )
        rows = [compete(contestants, name, options.rounds) for name in options.works]
    print(json.dumps({**_about(load_before), "bench": "peers", "threads": usable_cores(), "works": rows}))


def compete(contestants: dict[str, Contestant], name: str, num_rounds: int) -> dict[str, Any]:
    """One work by all in turn, the one that begins changing from round to round.

    A ratio is the median over the rounds of ours divided by the peer's of the same round.
    """
    found: dict[str, list[float]] = {who: [] for who in contestants}
    for number in range(num_rounds):
        for who in turns(list(contestants), number):
            found[who].append(contestants[who].tokens_per_s(WORKS[name]))
            print(f"{name} {who}: {found[who][-1]:.2f} tokens/s", file=sys.stderr)
    peers = {who: rates for who, rates in found.items() if who != "ours"}
    return {
        "work": name,
        "tokens_per_s": {who: [round(rate, 2) for rate in rates] for who, rates in found.items()},
        "median": {who: round(median(rates), 2) for who, rates in found.items()},
        "ratio": {who: round(median(ours_by(found["ours"], rates)), 3) for who, rates in peers.items()},
    }


def turns(names: Sequence[str], number: int) -> list[str]:
    """The order of a round."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def ours_by(ours: Sequence[float], peer: Sequence[float]) -> list[float]:
    """Round by round."""
    return [mine / theirs for mine, theirs in zip(ours, peer, strict=True)]


def _about(load_before: float) -> dict[str, Any]:
    from glm_cluster.bench.host import about

    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]  # whose folders they are is nobody's
    return {**about(load_before=load_before), "command": shlex.join(["tests/bench/peers.py", *words])}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--gguf", type=Path, nargs="+", default=[])
    parser.add_argument("--openvino-python", type=Path)
    parser.add_argument("--openvino-model", type=Path, nargs="+", default=[])
    options = parser.parse_args()
    for program, models in (("llama_bench", "gguf"), ("openvino_python", "openvino_model")):
        if (getattr(options, program) is None) == bool(getattr(options, models)):
            flags = [f"--{name.replace('_', '-')}" for name in (program, models)]
            parser.error(f"{' and '.join(flags)} go together")
    return options


if __name__ == "__main__":
    main()
