"""What a rank reads of its checkpoint beside the weights."""

from collections.abc import Callable
from pathlib import Path

from support.checkpoints import UNUSED_IDS, write_tokenizer

from glm_cluster.config import EngineConfig
from glm_cluster.deploy.shards import unused_token_ids


def test_ids_without_a_token_are_found(checkpoint: Callable[..., Path], tmp_path: Path):
    (tmp_path / "config.json").write_bytes((checkpoint() / "config.json").read_bytes())
    engine = EngineConfig(model=str(tmp_path))
    assert unused_token_ids(engine) == (), "a checkpoint may come without a tokenizer"
    write_tokenizer(tmp_path)
    assert unused_token_ids(engine) == UNUSED_IDS


def test_who_samples_no_token_needs_no_tokenizer(tmp_path: Path):
    assert unused_token_ids(EngineConfig(model=str(tmp_path), task="embed")) == ()
