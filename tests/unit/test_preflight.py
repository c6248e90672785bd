"""What is looked at before anything starts: ports, checkpoint, GPUs."""

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from glm_cluster import preflight
from glm_cluster.config import DeviceName, EngineConfig
from glm_cluster.errors import CheckpointError, ConfigError
from glm_cluster.model.config import GlmConfig
from glm_cluster.preflight import (
    GIB,
    Gpu,
    check_checkpoint,
    check_gpus,
    check_ports,
    check_room,
    choose_device,
    rank_bytes,
)

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
def checkpoint(tmp_path: Path) -> Path:
    """Just enough of one: 8 attention heads, 2 KV heads, and a weights file of a stated size."""
    config = {"model_type": "glm", "num_attention_heads": 8, "num_key_value_heads": 2, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 4096)
    return tmp_path


def test_free_ports_pass(free: int) -> None:
    check_ports("127.0.0.1", free, free + 1 if free < 65535 else free - 1)


def test_port_is_free_again_after_its_user_left(free: int) -> None:
    """A closed server leaves connections in TIME_WAIT, which no server minds."""
    with socket.create_server(("127.0.0.1", free)) as server, socket.create_connection(("127.0.0.1", free)):
        server.accept()[0].close()
    check_ports("127.0.0.1", free, free + 1 if free < 65535 else free - 1)


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
    [("model.safetensors", r"no \*\.safetensors"), ("config.json", "config.json"), ("", "no such directory")],
)
def test_incomplete_checkpoint_is_refused(missing: str, sentence: str, checkpoint: Path) -> None:
    if missing:
        (checkpoint / missing).unlink()
    directory = checkpoint if missing else checkpoint / "elsewhere"
    with pytest.raises(CheckpointError, match=sentence):
        check_checkpoint(EngineConfig(model=str(directory)))


@pytest.mark.parametrize(
    ("tp", "dtype", "weights"),
    [(1, "auto", 4096), (2, "auto", 2048), (1, "float32", 8192), (4, "bfloat16", 1024)],
)
def test_rank_needs_its_share_in_the_dtype_it_runs(tp: int, dtype: str, weights: int, checkpoint: Path) -> None:
    engine = EngineConfig.from_mapping({"model": str(checkpoint), "tp": tp, "dtype": dtype})
    assert rank_bytes(engine, GlmConfig.from_directory(checkpoint)) == weights + 2 * GIB


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
            check_gpus(engine, stored)
    else:
        check_gpus(engine, stored)


def test_replicas_multiply(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "visible_gpus", lambda: (CARD, CARD))
    monkeypatch.setattr(preflight, "torch_is_cpu_build", lambda: False)
    engine = EngineConfig(model=str(checkpoint), tp=2, device="cuda")
    with pytest.raises(ConfigError, match="4 GPUs are needed"):
        check_gpus(engine, GlmConfig.from_directory(checkpoint), num_replicas=2)


def test_cpu_build_of_torch_cannot_be_given_gpus(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "visible_gpus", lambda: (CARD,))
    monkeypatch.setattr(preflight, "torch_is_cpu_build", lambda: True)
    with pytest.raises(ConfigError, match="CPU build"):
        check_gpus(EngineConfig(model=str(checkpoint), device="cuda"), GlmConfig.from_directory(checkpoint))


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
