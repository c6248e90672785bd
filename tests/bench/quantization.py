"""What int8 changes: how far the distribution of the next token moves, and how often the most likely one stays.

    .venv/bin/python tests/bench/quantization.py [--model DIR|demo] [--text README.md] [--tokens 2048]

Each position of a text is predicted in fp32, in bf16 and in int8, by the engine's own kernels. KL is that of fp32 to
the other, in nats a token; bf16 is there to compare with. The last line printed is one JSON document; those of record
are in `results/`.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from glm_cluster.model.threads import prepare_threads, share_cores

prepare_threads()  # before torch

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from glm_cluster.bench.host import about  # noqa: E402
from glm_cluster.launch import model_directory  # noqa: E402
from glm_cluster.model.backend import load_with_backend  # noqa: E402
from glm_cluster.model.ranks import Ranks  # noqa: E402
from glm_cluster.records import Quantization  # noqa: E402
from glm_cluster.text.tokenizer import Plain, Tokenizer  # noqa: E402
from glm_cluster.verify.engine_answers import paged_logits  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CHUNK_TOKENS = 512
WAYS: dict[str, tuple[str, Quantization]] = {
    "float32": ("float32", "none"),
    "bfloat16": ("bfloat16", "none"),
    "int8": ("bfloat16", "int8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--text", type=Path, default=ROOT / "README.md")
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    share_cores(1)
    load = os.getloadavg()[0]
    directory = model_directory(options.model)
    (ids,) = Tokenizer.from_directory(directory).encode_batch([(Plain(options.text.read_text(encoding="utf-8")),)])
    ids = ids[: options.tokens]
    chunks = [ids[at : at + CHUNK_TOKENS] for at in range(0, len(ids), CHUNK_TOKENS)]
    logprobs = {way: _logprobs(directory, chunks, *how) for way, how in WAYS.items()}
    wanted = logprobs.pop("float32")
    figures = {way: _distance(wanted, found) for way, found in logprobs.items()}
    circumstances = {**about(load_before=load), "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])}
    print(json.dumps({**circumstances, "model": directory.name, "tokens": len(ids), **figures}))


def _logprobs(directory: Path, chunks: list[tuple[int, ...]], dtype: str, quantization: Quantization) -> Tensor:
    """[T, V] of every position."""
    ranks = Ranks.single()
    model, backend = load_with_backend(directory, ranks=ranks, dtype=dtype, quantization=quantization)
    return torch.cat([logits.float().log_softmax(-1) for logits in paged_logits(model, backend, chunks)])


def _distance(wanted_TV: Tensor, found_TV: Tensor) -> dict[str, float]:
    kl_T = (wanted_TV.exp() * (wanted_TV - found_TV)).sum(-1)
    agreed = (wanted_TV.argmax(-1) == found_TV.argmax(-1)).float().mean()
    return {
        "kl_mean": round(float(kl_T.mean()), 6),
        "kl_p99": round(float(kl_T.quantile(0.99)), 6),
        "same_most_likely": round(float(agreed), 4),
    }


if __name__ == "__main__":
    main()
