"""Clusters to test with, one for each module, and requests whose answers are known."""

import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
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
    directory = checkpoint(**SHAPE)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 300, "content": "<|endoftext|>", **flags}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": byte_vocabulary(), "merges": []},
    }
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return directory


def byte_vocabulary() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for letters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


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
    return open_engine(EngineConfig(model=str(tiny), device="cpu", kv_cache_bytes=32 << 20))


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
