"""OpenVINO GenAI as a worker of `peers.py`: for each line read, a job done and its two times written.

    PYTHON tests/bench/peers_openvino.py DIR [--threads 2] [--step-tokens 1024]

Runs under the Python of the peer's own environment, so it knows nothing of glm_cluster. DIR is a model that
optimum-intel exported. A line read is three numbers: requests, prompt tokens, output tokens. Prompts are random ids,
other ones each time, and no token ends an answer early.
"""

import argparse
import json
import random
import sys
import time
from typing import Any

import openvino
import openvino_genai

PLAIN_IDS = range(1000, 30000)  # in every GLM vocabulary, and no control tokens


class Peer:
    """The pipeline as it comes, but in bf16, without a prefix cache, and with steps of the size asked for."""

    def __init__(self, directory: str, num_threads: int, step_tokens: int) -> None:
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.enable_prefix_caching = False
        scheduling.max_num_batched_tokens = step_tokens
        scheduling.cache_size = 1  # GB
        hints = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": num_threads}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(directory, scheduling, "CPU", hints)
        self._draw = random.Random(0)
        self._num_requests = 0

    def run(self, num_requests: int, num_in: int, num_out: int) -> dict[str, float]:
        """Seconds to the first token of the first request, and to the last token of all."""
        started = time.perf_counter()
        handles = [self._add(num_in, num_out) for _ in range(num_requests)]
        while not handles[0].can_read():
            self._pipeline.step()
        first = time.perf_counter()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        ended = time.perf_counter()
        received = [len(output.generated_ids) for handle in handles for output in handle.read_all()]
        if received != [num_out] * num_requests:
            raise RuntimeError(f"asked {num_requests} times for {num_out} tokens and got {received}; free some memory")
        return {"first_s": first - started, "whole_s": ended - started}

    def _add(self, num_in: int, num_out: int) -> Any:
        settings = openvino_genai.GenerationConfig(max_new_tokens=num_out, ignore_eos=True, do_sample=False)
        ids = openvino.Tensor(openvino.Type.i64, [1, num_in])
        ids.data[:] = [self._draw.choices(PLAIN_IDS, k=num_in)]
        self._num_requests += 1
        return self._pipeline.add_request(self._num_requests, ids, settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--step-tokens", type=int, default=1024)
    options = parser.parse_args()
    peer = Peer(options.directory, options.threads, options.step_tokens)
    for line in sys.stdin:
        print(json.dumps(peer.run(*map(int, line.split()))), flush=True)


if __name__ == "__main__":
    main()
