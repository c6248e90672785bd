"""What placement is worth, and what it costs: simulated multi-turn traffic, and the time of one decision.

    .venv/bin/python tests/bench/routing.py tests/bench/results/routing-simulation.json

Plays the same conversations to each way of choosing a replica (`tests/support/fronts.py`), several seeds each, and
times decisions of `Placement` and of the router around it among 1,000 replicas. Writes one JSON document; the one of
record is in `results/`. The constants of `Placement` were chosen with seed 1, which is not among those played.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.fronts import POLICIES  # noqa: E402
from support.simulation import Fleet, Simulation  # noqa: E402
from support.traffic import Traffic  # noqa: E402

from glm_cluster.bench.host import about  # noqa: E402
from glm_cluster.deploy.channel import Submission  # noqa: E402
from glm_cluster.deploy.placement import Placement  # noqa: E402
from glm_cluster.deploy.prefixes import prefix_hashes  # noqa: E402
from glm_cluster.deploy.routing import GlmRequestRouter  # noqa: E402
from glm_cluster.records import GenerationRequest, SamplingParams  # noqa: E402

PLAYS = (  # fleet, seconds, seeds
    (Fleet(replicas=8, fronts=1), 240.0, (2, 3, 4)),
    (Fleet(replicas=8, fronts=4), 240.0, (2, 3, 4)),
    (Fleet(replicas=64, fronts=1), 160.0, (2, 3, 4)),
    (Fleet(replicas=64, fronts=4), 160.0, (2, 3, 4)),
    (Fleet(replicas=1000, fronts=4), 100.0, (2,)),
)
WARM_UP_S = 60.0
REPLICAS = 1000  # among which decisions are timed
PROMPT_TOKENS = 2048
DECISIONS = 2000
ROUNDS = 7


def main() -> None:
    out = Path(_options().out)
    head = about(load_before=os.getloadavg()[0]) | {"command": f"tests/bench/routing.py {out}"}
    decision = _decision()
    workload = asdict(Traffic(seconds=0.0)) | {"warm_up_s": WARM_UP_S}
    del workload["seconds"]
    policies = {name: policy.__doc__ for name, policy in POLICIES.items()}
    document = {**head, "workload": workload, "policies": policies, "decision": decision, "plays": _plays()}
    out.write_text(json.dumps(document, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", help="the JSON file to write")
    return parser.parse_args()


def _plays() -> list[dict[str, object]]:
    found = []
    for fleet, seconds, seeds in PLAYS:
        results = {name: _medians(name, fleet, seconds, seeds) for name in POLICIES}
        found.append({"fleet": asdict(fleet), "seconds": seconds, "seeds": seeds, "medians": results})
        for name, figures in results.items():
            print(fleet.replicas, fleet.fronts, name, figures, flush=True)
    return found


def _medians(policy: str, fleet: Fleet, seconds: float, seeds: Sequence[int]) -> dict[str, float]:
    runs = [
        Simulation(fleet, Traffic(seconds=seconds), POLICIES[policy], seed=seed, warm_up_s=WARM_UP_S).run()
        for seed in seeds
    ]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def _decision() -> dict[str, object]:
    """CPU microseconds of a decision among many replicas, every part of it."""
    random = Random(1)
    ids = range(150_000)
    systems = [tuple(random.choices(ids, k=PROMPT_TOKENS // 2)) for _ in range(50)]
    prompts = [random.choice(systems) + tuple(random.choices(ids, k=PROMPT_TOKENS // 2)) for _ in range(DECISIONS)]
    placement, names = Placement(num_fronts=4, random=random), [f"replica{i:04d}" for i in range(REPLICAS)]
    for name in names:
        placement.report(name, random.randrange(20))
    router, replicas = GlmRequestRouter.__new__(GlmRequestRouter), [_replica(name, random) for name in names]
    router.initialize_state(num_fronts=4)
    calls = [_pending(str(index), prompt) for index, prompt in enumerate(prompts)]
    return {
        "replicas": REPLICAS,
        "prompt_tokens": PROMPT_TOKENS,
        "cpu_us": {
            "prefix_hashes alone": _cpu_us(lambda i: prefix_hashes(prompts[i])),
            "Placement: rank, routed, done": _cpu_us(lambda i: _place(placement, str(i), prompts[i])),
            "the same, a prompt of 64 tokens": _cpu_us(lambda i: _place(placement, str(i), prompts[i][:64])),
            "GlmRequestRouter: choose_replicas to on_request_completed": _cpu_us(
                lambda i: _route(router, replicas, calls[i])
            ),
            "GlmRequestRouter: a new list in which every replica reports anew": _cpu_us(
                lambda i: _new_reports(router, replicas, i), count=20
            ),
        },
    }


def _cpu_us(work: Callable[[int], object], count: int = DECISIONS) -> dict[str, float]:
    """Of one call, the least and the median of several rounds' means."""
    means = []
    for _ in range(ROUNDS):
        before = time.process_time()
        for index in range(count):
            work(index)
        means.append((time.process_time() - before) / count * 1e6)
    return {"least": round(min(means), 1), "median": round(statistics.median(means), 1)}


def _place(placement: Placement, call: str, prompt: tuple[int, ...]) -> None:
    placement.routed(call, placement.rank(call, prompt)[0])
    placement.done(call)


def _route(router: GlmRequestRouter, replicas: list[SimpleNamespace], call: SimpleNamespace) -> None:
    try:
        router.choose_replicas(replicas, call).send(None)
    except StopIteration as stop:
        [best] = stop.value[0]
    router.on_request_routed(call, best.replica_id, None)
    router.on_request_completed(best.replica_id, call.metadata.internal_request_id)


def _new_reports(router: GlmRequestRouter, replicas: Sequence[SimpleNamespace], serial: int) -> None:
    for replica in replicas:
        replica.routing_stats = {**replica.routing_stats, "num_running": serial}
    router._look_at(list(replicas))


def _replica(name: str, random: Random) -> SimpleNamespace:
    """As much of Serve's RunningReplica as a router looks at."""
    stats = {"serving": True, "num_waiting": 0, "num_running": random.randrange(20)}
    return SimpleNamespace(replica_id=SimpleNamespace(unique_id=name), routing_stats=stats)


def _pending(call: str, prompt: tuple[int, ...]) -> SimpleNamespace:
    """As much of Serve's PendingRequest."""
    request = GenerationRequest(request_id=call, prompt=prompt, sampling=SamplingParams(max_tokens=1))
    return SimpleNamespace(
        args=[Submission(request, None)],
        metadata=SimpleNamespace(internal_request_id=call),
        routing_context=SimpleNamespace(should_backoff=False),
    )


if __name__ == "__main__":
    main()
