"""What is looked at before anything starts: ports, checkpoint, GPUs."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.checkpoints import edit_json
from support.hollow import byte_tokenizer, write_hollow

from glm_cluster import preflight
from glm_cluster.config import DeviceName, EngineConfig
from glm_cluster.errors import CheckpointError, ConfigError
from glm_cluster.model.checkpoints.checkpoint import INDEX_FILE, SINGLE_FILE
from glm_cluster.model.config import GlmConfig
from glm_cluster.preflight import (
    GIB,
    Demand,
    Gpu,
    check_checkpoint,
    check_gpus,
    check_ports,
    check_room,
    choose_device,
    rank_bytes,
)
from glm_cluster.records import Task

CARD = Gpu("0", "H100", free_bytes=70 * GIB, total_bytes=80 * GIB)
BUSY = Gpu("1", "H100", free_bytes=5 * GIB, total_bytes=80 * GIB)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def two_free() -> tuple[int, int]:
    """Ports that nobody listens on, both looked at together."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """8 attention heads, 2 KV heads."""
    return write_hollow(tmp_path / "checkpoint")


def test_free_ports_pass(two_free: tuple[int, int]) -> None:
    check_ports("127.0.0.1", *two_free)


def test_port_is_free_again_after_its_user_left(two_free: tuple[int, int]) -> None:
    """A closed server leaves connections in TIME_WAIT, which no server minds."""
    free, _ = two_free
    with socket.create_server(("127.0.0.1", free)) as server, socket.create_connection(("127.0.0.1", free)):
        server.accept()[0].close()
    check_ports("127.0.0.1", *two_free)


def test_taken_port_names_its_flag(taken: int, free: int) -> None:
    with pytest.raises(ConfigError, match=rf"port {taken} .* in use.*--port"):
        check_ports("127.0.0.1", taken, free)
    with pytest.raises(ConfigError, match=rf"port {taken} .* in use.*--grpc-port"):
        check_ports("127.0.0.1", free, taken)


def test_one_port_for_both_is_refused(free: int) -> None:
    with pytest.raises(ConfigError, match="cannot share"):
        check_ports("127.0.0.1", free, free)


@pytest.mark.parametrize(
    ("host", "sentence"),
    [("192.0.2.1", "not an address of this machine"), ("no.such.host.invalid", "can be resolved")],
)
def test_foreign_host_is_refused(host: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_ports(host, 8000, 9000)


def test_checkpoint_passes(checkpoint: Path) -> None:
    assert check_checkpoint(EngineConfig(model=str(checkpoint), tp=2)).num_attention_heads == 8


def test_impossible_tp_names_the_legal_sizes(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"3.*1, 2, 4"):
        check_checkpoint(EngineConfig(model=str(checkpoint), tp=3))


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("model.safetensors", "only safetensors are read"),
        ("config.json", "config.json"),
        ("tokenizer.json", "a checkpoint needs one of them"),
        ("", "no such directory"),
    ],
)
def test_incomplete_checkpoint_is_refused(missing: str, sentence: str, checkpoint: Path) -> None:
    if missing:
        (checkpoint / missing).unlink()
    directory = checkpoint if missing else checkpoint / "elsewhere"
    with pytest.raises(CheckpointError, match=sentence):
        check_checkpoint(EngineConfig(model=str(directory)))


def test_checkpoint_is_checked_without_torch(checkpoint: Path) -> None:
    """The command line says no within a blink, and Ray's processes are started without torch behind them."""
    program = (
        "import sys; from glm_cluster.config import EngineConfig; from glm_cluster.preflight import check_checkpoint; "
        f"check_checkpoint(EngineConfig(model={str(checkpoint)!r})); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def _index(directory: Path, **places: str) -> None:
    """Give the checkpoint an index that places every tensor in one shard, but for `places`."""
    shard = directory / "model-00001-of-00002.safetensors"
    if (directory / SINGLE_FILE).exists():
        (directory / SINGLE_FILE).rename(shard)
    weight_map = dict.fromkeys(load_file(shard), shard.name) | places
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))


def test_shard_that_the_index_names_must_be_there(checkpoint: Path) -> None:
    _index(checkpoint)
    check_checkpoint(EngineConfig(model=str(checkpoint)))
    _index(checkpoint, **{"lm_head.weight": "model-00002-of-00002.safetensors"})
    with pytest.raises(CheckpointError, match=r"index\.json names 'model-00002-of-00002.safetensors', which does not"):
        check_checkpoint(EngineConfig(model=str(checkpoint)))


def test_truncated_weights_are_seen_before_they_are_loaded(checkpoint: Path) -> None:
    path = checkpoint / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        check_checkpoint(EngineConfig(model=str(checkpoint)))


def test_tensor_of_another_shape_is_named(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", vocab_size=265)
    with pytest.raises(
        CheckpointError, match=r"'model.embed_tokens.weight' has shape \[264, 16\], the config wants \[265, 16\]"
    ):
        check_checkpoint(EngineConfig(model=str(checkpoint)))


@pytest.mark.parametrize("task", ["classify", "classify-tokens"])
def test_a_classifier_needs_its_head(task: Task, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'score.*missing"):
        check_checkpoint(EngineConfig(model=str(checkpoint), task=task))
    check_checkpoint(EngineConfig(model=str(write_hollow(tmp_path / task, task=task)), task=task))


def test_a_classifier_does_not_generate_but_embeds(tmp_path: Path) -> None:
    engine = EngineConfig(model=str(write_hollow(tmp_path, task="classify")))
    check_checkpoint(replace(engine, task="embed"))
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' is missing"):
        check_checkpoint(engine)


def test_glm4_layout_passes(tmp_path: Path) -> None:
    directory = write_hollow(tmp_path, model_type="glm4")
    assert "model.layers.0.post_mlp_layernorm.weight" in load_file(directory / SINGLE_FILE)
    assert check_checkpoint(EngineConfig(model=str(directory), tp=2)).model_type == "glm4"


def test_chatglm_layout_passes(checkpoint: Path) -> None:
    """THUDM's own files: other keys, other names, q k v in one tensor."""
    c = GlmConfig.from_directory(checkpoint)
    raw = {
        "model_type": "chatglm",
        "padded_vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "ffn_hidden_size": c.intermediate_size,
        "num_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "multi_query_attention": True,
        "multi_query_group_num": c.num_key_value_heads,
        "kv_channels": c.head_dim,
        "seq_length": 512,
        "add_qkv_bias": True,
        "pad_token_id": 256,
        "eos_token_id": [256, 257],
        "torch_dtype": "float32",
    }
    (checkpoint / "config.json").write_text(json.dumps(raw))
    layer, stored = "transformer.encoder.layers.0.", load_file(checkpoint / SINGLE_FILE)
    fused = {"weight": (48, 16), "bias": (48,)}
    tensors = {
        "transformer.embedding.word_embeddings.weight": stored["model.embed_tokens.weight"],
        "transformer.encoder.final_layernorm.weight": stored["model.norm.weight"],
        "transformer.output_layer.weight": stored["lm_head.weight"],
        f"{layer}input_layernorm.weight": stored["model.norm.weight"],
        f"{layer}post_attention_layernorm.weight": stored["model.norm.weight"],
        f"{layer}self_attention.dense.weight": stored["model.layers.0.self_attn.o_proj.weight"],
        f"{layer}mlp.dense_h_to_4h.weight": stored["model.layers.0.mlp.gate_up_proj.weight"],
        f"{layer}mlp.dense_4h_to_h.weight": stored["model.layers.0.mlp.down_proj.weight"],
        **{f"{layer}self_attention.query_key_value.{k}": np.zeros(s, np.float32) for k, s in fused.items()},
    }
    save_file(tensors, checkpoint / SINGLE_FILE)
    assert check_checkpoint(EngineConfig(model=str(checkpoint), tp=2)).model_type == "glm"
    save_file({n: t for n, t in tensors.items() if not n.endswith("value.bias")}, checkpoint / SINGLE_FILE)
    with pytest.raises(CheckpointError, match=r"k_proj\.bias' is missing"):
        check_checkpoint(EngineConfig(model=str(checkpoint)))


@pytest.mark.parametrize(
    ("num_controls", "sentence"),
    [(9, "token with id 264, but the model's vocabulary has 264 rows"), (1, "no token with id 257")],
)
def test_another_models_tokenizer_is_refused(num_controls: int, sentence: str, checkpoint: Path) -> None:
    """Seen by ids only: a tokenizer of the same size with its words at other ids looks the same."""
    (checkpoint / "tokenizer.json").write_text(json.dumps(byte_tokenizer(num_controls)))
    with pytest.raises(CheckpointError, match=sentence):
        check_checkpoint(EngineConfig(model=str(checkpoint)))


def test_padding_by_a_row_from_the_end_names_no_token(checkpoint: Path) -> None:
    """HF allows -1; the row it means is among those that no token has."""
    edit_json(checkpoint / "config.json", pad_token_id=-1)
    check_checkpoint(EngineConfig(model=str(checkpoint)))


@pytest.mark.parametrize(
    ("tp", "dtype", "share"),
    [(1, "auto", 1.0), (2, "auto", 0.5), (1, "bfloat16", 0.5), (4, "float32", 0.25)],
)
def test_rank_needs_its_share_in_the_dtype_it_runs(tp: int, dtype: str, share: float, checkpoint: Path) -> None:
    engine = EngineConfig.from_mapping({"model": str(checkpoint), "tp": tp, "dtype": dtype})
    weights = (checkpoint / SINGLE_FILE).stat().st_size
    assert rank_bytes(engine, GlmConfig.from_directory(checkpoint)) == int(weights * share) + 2 * GIB


@pytest.mark.parametrize(("dtype", "share"), [("auto", 1.0), ("bfloat16", 1.0), ("float32", 2.0)])
def test_where_the_config_says_no_dtype_the_stored_one_counts(dtype: str, share: float, checkpoint: Path) -> None:
    """As the engine loads them: float16 runs as bfloat16, which takes the same."""
    path = checkpoint / SINGLE_FILE
    save_file({name: tensor.astype(np.float16) for name, tensor in load_file(path).items()}, path)
    raw = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if "dtype" not in k}))
    engine = EngineConfig.from_mapping({"model": str(checkpoint), "dtype": dtype})
    needed = rank_bytes(engine, GlmConfig.from_directory(checkpoint))
    assert needed == int(path.stat().st_size * share) + 2 * GIB


def test_room_on_enough_gpus_passes() -> None:
    check_room([CARD, CARD, BUSY], num_gpus=2, rank_bytes=12 * GIB)


def test_full_gpu_among_the_first_names_those_with_room() -> None:
    """Ray hands GPUs out in order: one with room behind a full one is not taken by itself."""
    gpus = [CARD, BUSY, replace(CARD, id="2"), replace(CARD, id="GPU-3f")]
    with pytest.raises(ConfigError, match=r"3 of 4 have it.*set CUDA_VISIBLE_DEVICES=0,2 "):
        check_room(gpus, num_gpus=2, rank_bytes=12 * GIB)
    with pytest.raises(ConfigError, match=r"set CUDA_VISIBLE_DEVICES=0,2,GPU-3f "):
        check_room(gpus, num_gpus=3, rank_bytes=12 * GIB)


def test_too_few_gpus() -> None:
    with pytest.raises(ConfigError, match=r"2 GPUs are needed .* and 1 visible"):
        check_room([CARD], num_gpus=2, rank_bytes=GIB)


def test_too_little_free_memory_says_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"needs 12\.0 GiB free and 1 of 2 .*5\.0 of 80\.0 GiB; stop what"):
        check_room([CARD, BUSY], num_gpus=2, rank_bytes=12 * GIB)


@pytest.mark.parametrize(
    ("device", "gpus", "refused"),
    [
        ("cpu", (), False),
        ("cuda", (), True),
        ("cpu", (BUSY,), False),
        ("cuda", (BUSY,), True),
        ("cuda", (CARD, CARD), False),
    ],
)
def test_gpus_are_looked_at_when_they_are_used(
    device: str, gpus: tuple[Gpu, ...], refused: bool, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(preflight, "torch_is_cpu_build", lambda: False)
    engine = EngineConfig.from_mapping({"model": str(checkpoint), "tp": 2, "device": device})
    stored = GlmConfig.from_directory(checkpoint)
    if refused:
        with pytest.raises(ConfigError):
            check_gpus([Demand(engine, stored)])
    else:
        check_gpus([Demand(engine, stored)])


def test_replicas_multiply(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "visible_gpus", lambda: (CARD, CARD))
    monkeypatch.setattr(preflight, "torch_is_cpu_build", lambda: False)
    engine = EngineConfig(model=str(checkpoint), tp=2, device="cuda")
    with pytest.raises(ConfigError, match="4 GPUs are needed"):
        check_gpus([Demand(engine, GlmConfig.from_directory(checkpoint), num_replicas=2)])


def test_models_add_up(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three cards for two models on CUDA; the one on the CPU needs none. Any card may get the largest rank."""
    monkeypatch.setattr(preflight, "torch_is_cpu_build", lambda: False)
    stored = GlmConfig.from_directory(checkpoint)
    demands = [
        Demand(EngineConfig(model=str(checkpoint), tp=tp, device=device), stored)
        for tp, device in ((2, "cuda"), (1, "cuda"), (2, "cpu"))
    ]
    monkeypatch.setattr(preflight, "visible_gpus", lambda: (CARD, CARD))
    with pytest.raises(ConfigError, match="3 GPUs are needed"):
        check_gpus(demands)
    monkeypatch.setattr(preflight, "visible_gpus", lambda: (CARD, CARD, CARD))
    check_gpus(demands)


def test_cpu_build_of_torch_cannot_be_given_gpus(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "visible_gpus", lambda: (CARD,))
    monkeypatch.setattr(preflight, "torch_is_cpu_build", lambda: True)
    with pytest.raises(ConfigError, match="CPU build"):
        check_gpus([Demand(EngineConfig(model=str(checkpoint), device="cuda"), GlmConfig.from_directory(checkpoint))])


@pytest.mark.parametrize(
    ("asked", "num_visible", "cpu_build", "device", "why"),
    [
        ("cpu", 4, False, "cpu", ""),
        ("cuda", 0, True, "cuda", ""),
        ("auto", 0, True, "cpu", ""),
        ("auto", 3, False, "cuda", ""),
        ("auto", 4, False, "cuda", ""),
        ("auto", 1, False, "cpu", "3 GPUs would be needed .* and 1 visible"),
        ("auto", 4, True, "cpu", "CPU build"),
    ],
)
def test_auto_takes_gpus_when_every_rank_gets_one(
    asked: DeviceName, num_visible: int, cpu_build: bool, device: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop with one GPU runs three ranks on its CPU, and says so."""
    monkeypatch.setattr(preflight, "visible_gpus", lambda: (CARD,) * num_visible)
    monkeypatch.setattr(preflight, "torch_is_cpu_build", lambda: cpu_build)
    chosen = choose_device(asked, num_gpus=3)
    assert chosen.device == device
    assert re.search(why, chosen.why) if why else chosen.why is None


def test_cuda_visible_devices_hides_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch would not see is not counted; on a machine without a driver there is nothing to hide."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert preflight.visible_gpus() == ()


def test_a_length_beyond_the_checkpoint_s_is_refused_before_anything_starts(checkpoint: Path) -> None:
    limit = GlmConfig.from_directory(checkpoint).context_limit
    check_checkpoint(EngineConfig(model=str(checkpoint), max_model_len=limit))
    with pytest.raises(ConfigError, match=f"more than the {limit} positions"):
        check_checkpoint(EngineConfig(model=str(checkpoint), max_model_len=limit + 1))
