"""What loading a model costs: the most memory a rank ever had, beside what it keeps, and the time.

    .venv/bin/python tests/bench/loading.py [--stored bfloat16] [--dtype auto] [--tp 1] [--layers 28]

Writes random weights in the shape of GLM-Edge-1.5B into a temporary directory, loads them in one process a rank. The
peak is the kernel's own, less that of the same process before it loaded; the ratio is to the bytes of its weights
in the dtype it computes in. KV pages cost nothing before they are used. The last line printed is one JSON document;
results of record are in `results/`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.memory import peak_bytes  # noqa: E402

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 59264,
    "pad_token_id": 59246,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "max_position_embeddings": 8192,
}
_KV_BYTES = 1 << 30


def main() -> None:
    options = _options()
    if options.rank is not None:
        print(json.dumps(load(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.layers, options.stored)
        ranks = [_start(options, folder, rank) for rank in range(options.tp)]
        found = [json.loads(rank.communicate()[0].splitlines()[-1]) for rank in ranks]
    worst = max(found, key=lambda one: one["ratio"])
    print(json.dumps({**_about(options), **worst, "ranks": found}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stored", default="bfloat16")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _about(options: argparse.Namespace) -> dict[str, object]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = ("stored", "dtype", "tp", "layers")
    return {
        "command": " ".join(["tests/bench/loading.py", *(f"--{name} {getattr(options, name)}" for name in names)]),
        "commit": commit.stdout.strip()[:12],
        "machine": f"{os.cpu_count()} cores {os.uname().machine}, {psutil.virtual_memory().total >> 30} GiB",
    }


def write(folder: Path, num_layers: int, stored: str) -> None:
    """A checkpoint of random weights."""
    import torch

    from glm_cluster.model import GlmConfig, GlmForCausalLM

    torch.set_default_dtype(getattr(torch, stored))
    GlmForCausalLM(GlmConfig(**SHAPE, num_hidden_layers=num_layers)).save_pretrained(folder)


def _start(options: argparse.Namespace, folder: str, rank: int) -> "subprocess.Popen[str]":
    given = ["--dtype", options.dtype, "--tp", str(options.tp), "--rank", str(rank), "--folder", folder]
    return subprocess.Popen([sys.executable, __file__, *given], stdout=subprocess.PIPE, text=True)


def load(options: argparse.Namespace) -> dict[str, float]:
    """One rank: what it had before, what it had at most beside that, and how long it took."""
    from glm_cluster.model.threads import prepare_threads, share_cores

    prepare_threads()
    from torch.distributed import FileStore

    from glm_cluster.config import EngineConfig
    from glm_cluster.engine.runner import ModelRunner
    from glm_cluster.model.ranks import Ranks

    share_cores(options.tp)
    ranks = Ranks.join(
        rank=options.rank, size=options.tp, store=FileStore(str(options.folder / "store"), options.tp), host="127.0.0.1"
    )
    settings = {"model": str(options.folder), "tp": options.tp, "dtype": options.dtype, "device": "cpu"}
    engine = EngineConfig.from_mapping({**settings, "kv_cache_bytes": _KV_BYTES})
    weights = weight_bytes(options)
    before, read, started = peak_bytes(), [], time.monotonic()
    runner = ModelRunner.load(engine, ranks, on_read=lambda done, total: read.append(done))
    seconds = time.monotonic() - started
    more = peak_bytes() - before
    assert runner.limits.num_blocks > 1
    return {
        "empty_mb": round(before / 1e6),
        "peak_more_mb": round(more / 1e6),
        "weights_mb": round(weights / 1e6),
        "ratio": round(more / weights, 3),
        "seconds": round(seconds, 2),
        "read_gb_per_s": round(read[-1] / seconds / 1e9, 2),
    }


def weight_bytes(options: argparse.Namespace) -> int:
    """What this rank keeps of the weights, in the dtype it computes in."""
    from glm_cluster.model.config import GlmConfig
    from glm_cluster.model.loading import resolve_dtype
    from glm_cluster.model.sharding import Sharding

    config = GlmConfig.from_directory(options.folder)
    shards = Sharding(config, options.rank, options.tp).tensors().values()
    return sum(prod(shard.shape) for shard in shards) * resolve_dtype(config, options.dtype).itemsize


if __name__ == "__main__":
    main()
