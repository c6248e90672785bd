"""A head over a sharded decoder gives the numbers of one rank, and its bits do not depend on the batch either."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.engines import encode, encode_requests
from support.groups import open_group

from glm_cluster.config import EngineConfig
from glm_cluster.engine.engine import open_engine
from glm_cluster.records import Encoded, Task

pytestmark = pytest.mark.parallel

TASKS: list[Task] = ["classify", "classify-tokens", "embed"]


def _values(encoded: Encoded) -> torch.Tensor:
    return torch.tensor(struct.unpack(f"<{encoded.num_rows * encoded.width}f", encoded.values))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [2, 4])
def test_a_group_gives_the_numbers_of_one_rank(checkpoint: Callable[..., Path], task: Task, size: int) -> None:
    """Within 1e-5 of the largest number of a row: partial sums are added in another order."""
    config = EngineConfig(model=str(checkpoint(task=task, num_labels=5)), task=task, dtype="float32")
    requests = encode_requests(10, task=task, vocab_size=301)
    group, _ = open_group(config, size)
    ours, wanted = encode(group, requests), encode(open_engine(config), requests)
    assert ours.keys() == wanted.keys()
    for name, one in wanted.items():
        assert (ours[name].num_rows, ours[name].width) == (one.num_rows, one.width)
        expected = _values(one)
        assert (_values(ours[name]) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("task", TASKS)
def test_a_groups_bits_do_not_depend_on_the_batch(checkpoint: Callable[..., Path], task: Task) -> None:
    model = str(checkpoint(task=task, num_labels=5))
    requests = encode_requests(6, task=task, vocab_size=301)
    together, _ = open_group(EngineConfig(model=model, task=task, dtype="float32"), 2)
    chunked, _ = open_group(EngineConfig(model=model, task=task, dtype="float32", step_tokens=7), 2)
    wanted = {name: encoded.values for name, encoded in encode(together, requests).items()}
    assert {name: encoded.values for name, encoded in encode(chunked, requests).items()} == wanted
