"""Clusters to test with, one for each module, and requests whose answers are known."""

import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import UNUSED_IDS, write_tokenizer
from support.cluster import Case, RunningCluster
from support.engines import drain

from glm_cluster.config import EngineConfig
from glm_cluster.engine.engine import Engine, open_engine
from glm_cluster.records import GenerationRequest, SamplingParams

SHAPE: dict[str, Any] = {  # of heads that two ranks and three can share
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "intermediate_size": 192,
    "max_position_embeddings": 1024,
    "eos_token_id": [300],
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A cluster takes the whole machine: all of these run in one worker."""
    here = str(Path(__file__).parent)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.xdist_group("cluster"))


@pytest.fixture(scope="session")
def tiny(checkpoint: Callable[..., Path]) -> Path:
    """A tiny random model with a tokenizer of bytes and a template."""
    return write_tokenizer(checkpoint(**SHAPE))


@pytest.fixture(scope="session")
def settings(tiny: Path) -> Callable[..., dict[str, Any]]:
    """Cluster settings for the tiny model."""

    def make(**changes: Any) -> dict[str, Any]:
        return {"model": str(tiny), "model_name": "tiny", "device": "cpu", "kv_cache_bytes": 32 << 20, **changes}

    return make


@pytest.fixture(scope="session")
def offline(tiny: Path) -> Engine:
    """The engine without a cluster around it."""
    torch.set_num_threads(1)  # such a small model only gets slower with more
    settings = EngineConfig(model=str(tiny), device="cpu", kv_cache_bytes=32 << 20)
    return open_engine(settings, unused_token_ids=UNUSED_IDS)


@pytest.fixture(scope="session")
def cases(offline: Engine) -> Callable[..., list[Case]]:
    """Random requests, greedy and seeded, that run to max_tokens; each with the ids it has alone."""

    @cache
    def make(count: int, *, seed: int, max_tokens: tuple[int, int]) -> list[Case]:
        rng = random.Random(seed)
        made: list[Case] = []
        while len(made) < count:
            prompt = tuple(rng.randrange(2, 256) for _ in range(rng.choice([1, 5, 16, 40, 130])))
            length = rng.randint(*max_tokens)
            # A long seeded run would meet the stop token sooner or later.
            sampling: dict[str, Any] = {
                "max_tokens": length,
                "temperature": rng.choice([0.0, 0.8 if length < 200 else 0]),
            }
            if sampling["temperature"]:
                sampling |= {"seed": rng.randrange(2**62), "top_p": 0.95}
            params = SamplingParams(**sampling, stop_token_ids=(300,))
            ids = drain(offline, [GenerationRequest(request_id="r", prompt=prompt, sampling=params)], check=False)["r"]
            if len(ids) == params.max_tokens:
                made.append(Case(prompt, sampling, ids))
        return made

    return make


@pytest.fixture(scope="module")
def start_cluster() -> Iterator[Callable[..., RunningCluster]]:
    """Start clusters that end with the module."""
    started: list[RunningCluster] = []

    def start(args: dict[str, Any], **options: Any) -> RunningCluster:
        started.append(RunningCluster(args, **options))
        return started[-1]

    yield start
    for cluster in started:
        cluster.close()
