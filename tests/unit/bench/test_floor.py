"""FLOP and bytes by hand; times are positive; nothing is said about how long anything takes."""

import json
from pathlib import Path

import pytest
import torch

from glm_cluster.bench.floor import paths
from glm_cluster.bench.shapes import chunks, config_of, gemms
from glm_cluster.cli import main
from glm_cluster.errors import ConfigError
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.kernels.build import Refusal
from glm_cluster.model.kernels.native import library

TINY = GlmConfig(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    pad_token_id=0,
    dtype="float32",
)
LAYER = 64 * (4 + 2 + 2) * 32 + 4 * 32 * 64 + 64 * 2 * 96 + 96 * 64  # weights of qkv, o, gate_up, down
HEAD = 64 * 300


def test_shapes() -> None:
    assert [(g.name, g.num_in, g.num_out, g.count) for g in gemms(TINY)] == [
        ("qkv", 64, 256, 3),
        ("o", 128, 64, 3),
        ("gate_up", 64, 192, 3),
        ("down", 96, 64, 3),
        ("lm_head", 64, 300, 1),
    ]
    qkv = gemms(TINY)[0]
    assert (qkv.flop(5), qkv.weight_bytes(2)) == (2 * 5 * 64 * 256, 64 * 256 * 2)


def test_chunks() -> None:
    assert chunks(1024, 512) == (512, 512)
    assert chunks(1000, 512) == (512, 488)
    assert chunks(3, 512) == (3,)


def test_a_recipe_needs_no_files() -> None:
    assert sum(g.num_in * g.num_out * g.count for g in gemms(config_of("demo"))) == pytest.approx(134.5e6, rel=0.01)
    with pytest.raises(ConfigError, match="no recipe"):
        config_of("no-such-model")


@pytest.mark.usefixtures("quick_floor")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_floor_of_a_tiny_model(dtype: str) -> None:
    import torch

    from glm_cluster.bench.floor import Floor

    floor = Floor(TINY, getattr(torch, dtype), "cpu")
    item = 4 if dtype == "float32" else 2
    step = floor.decode(2)
    assert step.flop == 2 * 2 * (3 * LAYER + HEAD)
    assert step.weight_bytes == item * (3 * LAYER + HEAD)
    prefill = floor.prefill(20, 16)  # 16 rows, then 4; the head sees one
    assert prefill.flop == 2 * (20 * 3 * LAYER + HEAD)
    assert prefill.weight_bytes == item * (2 * 3 * LAYER + HEAD)
    assert [(t.name, t.rows) for t in floor.times if t.name in ("qkv", "lm_head")] == [
        ("qkv", 2),
        ("lm_head", 2),
        ("qkv", 16),
        ("qkv", 4),
        ("lm_head", 1),
    ]
    assert all(time.seconds > 0 for time in floor.times)
    assert floor.read_bytes_per_s() > 0
    assert step.seconds == pytest.approx(sum(t.seconds * t.count for t in floor.times if t.rows == 2))


@pytest.mark.usefixtures("quick_floor")
def test_the_engines_own_kernels_are_measured_where_they_are() -> None:
    weights = [torch.randn(130, 64) for _ in range(2)]
    x = torch.randn(3, 64)
    wanted = [x @ weight.T for weight in weights]
    found = paths(weights, 3)
    assert ("kernels" in found) == (not isinstance(library(), Refusal))
    for calls in found.values():
        for call, expected in zip(calls, wanted, strict=True):
            torch.testing.assert_close(call(x), expected)


@pytest.mark.usefixtures("quick_floor")
def test_command_gives_one_line_with_its_circumstances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TINY.save_pretrained(tmp_path)
    assert main(["bench", "gemm-floor", "--model", str(tmp_path), "--rows", "2", "--prompt-tokens", "8", "--json"]) == 0
    (line,) = capsys.readouterr().out.strip().split("\n")
    found = json.loads(line)
    assert [each["pass"] for each in found["passes"]] == ["decode x2", "prefill 8 by 512"]
    assert found["passes"][0]["flop"] == 2 * 2 * (3 * LAYER + HEAD)
    assert found["dtype"] == "float32"
    assert {"command", "commit", "date", "machine", "torch"} <= set(found)
