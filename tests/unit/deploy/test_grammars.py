"""Which grammars a checkpoint's rank can follow."""

from collections.abc import Callable
from pathlib import Path

from support.checkpoints import edit_json, write_tokenizer

from glm_cluster.config import EngineConfig
from glm_cluster.deploy.grammars import open_workshop
from glm_cluster.records import Grammar


def test_a_checkpoint_with_a_tokenizer_follows_grammars(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint() / "config.json").read_bytes())
    edit_json(tmp_path / "config.json", eos_token_id=[300])
    assert open_workshop(EngineConfig(model=str(tmp_path))) is None, "no tokenizer"
    write_tokenizer(tmp_path)
    assert open_workshop(EngineConfig(model=str(tmp_path), task="embed")) is None, "no output"
    workshop = open_workshop(EngineConfig(model=str(tmp_path)))
    assert workshop is not None
    following = workshop.follow(Grammar("regex", "a"))
    following.wait(60)
    assert following.is_ready
    following.take((ord("a"),))
    mask = following.allowed()
    assert mask is not None
    assert len(mask) == 10  # a vocabulary of 301
    assert mask.tolist() == [0] * 9 + [1 << 300 % 32]
    workshop.close()
