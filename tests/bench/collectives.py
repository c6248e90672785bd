"""What adding up a bf16 tensor costs between the ranks of one host: gloo against shared memory, by turns, in one run.

    .venv/bin/python tests/bench/collectives.py [--ranks 2 4] [--turns 7]

A rank of either kind is a process with one thread. Each turn takes rank 0's mean of calls back to back, in µs; reported
are the medians over the turns, the least in brackets, and the ratio of the medians. The last line printed is one JSON
document; results of record are in `results/`.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

from glm_cluster.bench.host import about

SIZES = {"4 KB": 4 << 10, "64 KB": 64 << 10, "1 MB": 1 << 20, "8 MB": 8 << 20}
TURN_S = 0.2


def main() -> None:
    options, load_before = _options(), os.getloadavg()[0]
    rows = [row for size in options.ranks for row in _group(size, options.turns)]
    for row in rows:
        gloo, shared = ("{us} µs ({least_us})".format(**row[kind]) for kind in ("gloo", "shared"))
        print(f"{row['ranks']} ranks, {row['bytes']}: gloo {gloo}, shared {shared}, {row['ratio']} x")
    ranks = " ".join(map(str, options.ranks))
    command = f"tests/bench/collectives.py --ranks {ranks} --turns {options.turns}"
    print(json.dumps({**about(load_before=load_before), "command": command, "rows": rows}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--turns", type=int, default=7)
    return parser.parse_args()


def _group(size: int, turns: int) -> list[dict[str, Any]]:
    """The rows of one group of rank processes."""
    from glm_cluster.model.ranks import open_store

    store = open_store("127.0.0.1")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    ranks = [context.Process(target=_rank, args=(rank, size, store.port, turns, theirs)) for rank in range(size)]
    for rank in ranks:
        rank.start()
    theirs.close()
    rows: list[dict[str, Any]] = ours.recv()
    for rank in ranks:
        rank.join()
    return rows


def _rank(rank: int, size: int, port: int, turns: int, result: Connection) -> None:
    import torch
    from torch.distributed import PrefixStore

    from glm_cluster.model.ranks import Ranks, connect_store

    torch.set_num_threads(1)
    store = connect_store("127.0.0.1", port)
    gloo = Ranks.join(rank=rank, size=size, store=PrefixStore("gloo", store), backend="gloo")
    shared = Ranks.join(rank=rank, size=size, store=PrefixStore("shared", store))
    assert shared._shared is not None, "the ranks share no memory"
    rows = []
    for name, num_bytes in SIZES.items():
        x = torch.randn(num_bytes // 2, dtype=torch.bfloat16)
        assert torch.equal(gloo.sum(x), shared.sum(x))
        times = [(_time(gloo, x), _time(shared, x)) for _ in range(turns)]
        theirs, ours = (_figures(column) for column in zip(*times, strict=True))
        ratio = round(theirs["us"] / ours["us"], 1)
        rows.append({"ranks": size, "bytes": name, "gloo": theirs, "shared": ours, "ratio": ratio})
    if rank == 0:
        result.send(rows)


def _figures(times: tuple[float, ...]) -> dict[str, float]:
    return {"us": round(statistics.median(times) * 1e6, 1), "least_us": round(min(times) * 1e6, 1)}


def _time(ranks: Any, x: Any) -> float:
    """Seconds a call, over as many calls as the slowest rank makes in a turn."""
    started = time.perf_counter()
    for _ in range(3):
        ranks.sum(x)
    calls = ranks.least(max(3, int(TURN_S * 3 / (time.perf_counter() - started))))
    started = time.perf_counter()
    for _ in range(calls):
        ranks.sum(x)
    return (time.perf_counter() - started) / calls


if __name__ == "__main__":
    main()
