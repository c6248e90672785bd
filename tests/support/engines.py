"""Drive an engine to the end, and make mixes of requests."""

import random
from collections.abc import Sequence

from glm_cluster.engine.engine import Engine
from glm_cluster.engine.sequence import Request
from glm_cluster.records import Encoded, EncodeRequest, GenerationRequest, Pooling, SamplingParams, Task, TokenEvent

POOLINGS: dict[Task, tuple[Pooling, ...]] = {
    "classify": ("last",),
    "classify-tokens": ("tokens",),
    "embed": ("last", "mean"),
}


def drain(engine: Engine, requests: list[GenerationRequest], *, check: bool = True) -> dict[str, tuple[int, ...]]:
    """Run the requests to their end, checking the invariants after every step; the new ids of each."""
    events = drain_events(engine, requests, check=check)
    return {name: tuple(t for e in some for t in e.tokens) for name, some in events.items()}


def encode(engine: Engine, requests: Sequence[EncodeRequest]) -> dict[str, Encoded]:
    """Run the requests to their end, checking the invariants after every step; the result of each."""
    results: dict[str, Encoded] = {}
    for name, (event,) in drain_events(engine, requests).items():
        assert event.encoded is not None
        results[name] = event.encoded
    return results


def drain_events(engine: Engine, requests: Sequence[Request], *, check: bool = True) -> dict[str, list[TokenEvent]]:
    """Like `drain`, with the events themselves."""
    events: dict[str, list[TokenEvent]] = {r.request_id: [] for r in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for event in engine.step():
            events[event.request_id].append(event)
        if check:
            engine.check()
    for some in events.values():
        assert [e.finish is not None for e in some] == [False] * (len(some) - 1) + [True]
    return events


def mixed_requests(count: int, *, vocab_size: int, seed: int = 0, max_tokens: int = 40) -> list[GenerationRequest]:
    """Prompts around the block and tile edges, greedy and seeded with every filter."""
    rng = random.Random(seed)
    return [
        GenerationRequest(
            request_id=f"r{i}",
            prompt=tuple(rng.randrange(2, vocab_size) for _ in range(rng.choice([1, 3, 16, 17, 63, 64, 65, 150]))),
            sampling=SamplingParams(
                max_tokens=rng.randrange(1, max_tokens),
                temperature=rng.choice([0.0, 0.0, 1.0, 0.7]),
                top_k=rng.choice([None, 5, 20]),
                top_p=rng.choice([None, 0.9]),
                min_p=rng.choice([None, 0.05]),
                seed=rng.randrange(2**63),
                stop_token_ids=(1,),
            ),
        )
        for i in range(count)
    ]


def encode_requests(count: int, *, task: Task, vocab_size: int, seed: int = 0) -> list[EncodeRequest]:
    """Prompts around the block and tile edges, pooled in every way the task has; some begin alike."""
    rng = random.Random(seed)
    shared = [rng.randrange(2, vocab_size) for _ in range(70)]
    requests = []
    for i in range(count):
        length = rng.choice([1, 3, 16, 17, 63, 64, 65, 150])
        prompt = [rng.randrange(2, vocab_size) for _ in range(length)]
        if i % 2:
            prompt[:-1] = (shared + prompt)[: length - 1]
        requests.append(EncodeRequest(request_id=f"r{i}", prompt=tuple(prompt), pooling=rng.choice(POOLINGS[task])))
    return requests
