"""Can what was asked be done: ports, checkpoint files, GPUs. Looks before anything is started or loaded.

Knows NVML, and files by their headers and sizes. Knows no torch and no Ray, and loads no weights.
"""

import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from glm_cluster.config import DeviceName, EngineConfig
from glm_cluster.errors import CheckpointError, ConfigError
from glm_cluster.model.checkpoints.checkpoint import Checkpoint
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.sharding import Sharding
from glm_cluster.text.tokenizer import Tokenizer

GIB = 1024**3
# What a rank needs beside its weights: the CUDA context and NCCL's buffers (about 1 GiB), activations and a few blocks.
_OVERHEAD_BYTES = 2 * GIB
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU this process may use. `id` is what CUDA_VISIBLE_DEVICES calls it."""

    id: str
    name: str
    free_bytes: int
    total_bytes: int


def check_ports(host: str, http_port: int, grpc_port: int) -> None:
    """Refuse ports that this machine cannot listen on, naming the flag that changes each."""
    if http_port == grpc_port:
        raise ConfigError(f"HTTP and gRPC cannot share port {http_port}; give one of them another")
    _check_port(host, http_port, "--port")
    _check_port(host, grpc_port, "--grpc-port")


def check_checkpoint(engine: EngineConfig) -> GlmConfig:
    """Refuse a directory that does not hold a whole checkpoint for the task, and a group size that does not divide it.

    Whole: every file is there and as long as its header says, holding every tensor of the task's model in the shape and
    dtype that config.json gives, and the tokenizer is this model's. Weights themselves are not looked at.
    """
    directory = Path(engine.model)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; --model takes a directory in Hugging Face's layout")
    config = GlmConfig.from_directory(directory)
    config.check_tp(engine.tp)
    if engine.max_model_len is not None and engine.max_model_len > config.context_limit:
        raise ConfigError(
            f"max_model_len {engine.max_model_len} is more than the {config.context_limit} positions of this checkpoint"
            "; ask for that or less"
        )
    Checkpoint.open(directory, config).check(Sharding(config, 0, 1).of_task(engine.task))
    check_tokenizer(directory, config)
    return config


def check_tokenizer(directory: Path, config: GlmConfig) -> None:
    """Refuse a directory without a tokenizer, or with one that cannot be this model's."""
    tokenizer = Tokenizer.from_directory(directory)
    tokenizer.check_fits(vocab_size=config.vocab_size, special_ids=config.special_ids, where=directory)


@dataclass(frozen=True, slots=True)
class Choice:
    """The device that `auto` stands for here; `why` where a person might have expected the other."""

    device: DeviceName
    why: str | None = None


def choose_device(asked: DeviceName, *, num_gpus: int) -> Choice:
    """What was asked for; for `auto`, CUDA if there is one visible GPU for each of `num_gpus` ranks, else the CPU."""
    if asked != "auto":
        return Choice(asked)
    num_visible = len(visible_gpus())
    if num_visible == 0:
        return Choice("cpu")
    if torch_is_cpu_build():
        return Choice("cpu", "Running on the CPU: the installed torch is a CPU build, which sees no GPU")
    if num_visible < num_gpus:
        needed = f"{num_gpus} GPUs would be needed (tp x replicas) and {num_visible} visible"
        return Choice("cpu", f"Running on the CPU: {needed}; lower --tp or --replicas to use them")
    return Choice("cuda")


@dataclass(frozen=True, slots=True)
class Demand:
    """One model's groups: `num_replicas` times an engine. Its device has been chosen: `auto` is none."""

    engine: EngineConfig
    stored: GlmConfig
    num_replicas: int = 1


def check_gpus(demands: Sequence[Demand]) -> None:
    """Refuse groups that the GPUs have no room for. Ray picks a group's cards, so each must hold the largest rank."""
    on_cuda = [demand for demand in demands if demand.engine.device == "cuda"]
    if not on_cuda:
        return
    gpus = visible_gpus()
    if not gpus:
        raise ConfigError("device cuda was asked for and no NVIDIA GPU is visible; check nvidia-smi, or --device cpu")
    if torch_is_cpu_build():
        raise ConfigError("device cuda was asked for and the installed torch is a CPU build; install PyPI's own build")
    check_room(
        gpus,
        num_gpus=sum(demand.engine.tp * demand.num_replicas for demand in on_cuda),
        rank_bytes=max(rank_bytes(demand.engine, demand.stored) for demand in on_cuda),
    )


def check_room(gpus: Sequence[Gpu], *, num_gpus: int, rank_bytes: int) -> None:
    """Refuse unless the first `num_gpus` GPUs, those Ray hands out, have `rank_bytes` free. Says what there is."""
    if len(gpus) < num_gpus:
        raise ConfigError(
            f"{num_gpus} GPUs are needed (tp x replicas) and {len(gpus)} visible; lower --tp or --replicas"
        )
    if all(gpu.free_bytes >= rank_bytes for gpu in gpus[:num_gpus]):
        return
    roomy = [gpu.id for gpu in gpus if gpu.free_bytes >= rank_bytes]
    if len(roomy) >= num_gpus:
        advice = f"set CUDA_VISIBLE_DEVICES={','.join(roomy[:num_gpus])} to take those with room"
    else:
        advice = "stop what uses them or raise --tp"
    free = ", ".join(
        f"{gpu.id} ({gpu.name}): {gpu.free_bytes / GIB:.1f} of {gpu.total_bytes / GIB:.1f} GiB" for gpu in gpus
    )
    raise ConfigError(
        f"each of the first {num_gpus} GPUs needs {rank_bytes / GIB:.1f} GiB free and {len(roomy)} of {len(gpus)} have "
        f"it; free on GPU {free}; {advice}"
    )


def rank_bytes(engine: EngineConfig, stored: GlmConfig) -> int:
    """Memory one rank cannot do without: its share of the weights in the dtype they are run in, and the overhead."""
    on_disk = sum(path.stat().st_size for path in Path(engine.model).glob("*.safetensors"))
    stored_as = Checkpoint.open(Path(engine.model), stored).with_stored_dtype(stored).dtype or "float32"
    run_as = stored_as if engine.dtype == "auto" else engine.dtype
    scale = _DTYPE_BYTES.get(run_as, 4) / _DTYPE_BYTES.get(stored_as, 4)
    return int(on_disk * scale / engine.tp) + _OVERHEAD_BYTES


def torch_is_cpu_build() -> bool:
    """Known from the version's suffix, without importing it."""
    return version("torch").endswith("+cpu")


def visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs that NVML shows and CUDA_VISIBLE_DEVICES leaves; none where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(_describe(id) for id in _ids())
    except pynvml.NVMLError as error:
        raise ConfigError(
            f"the NVIDIA driver does not answer ({error}); check nvidia-smi, or use --device cpu"
        ) from error
    finally:
        pynvml.nvmlShutdown()


def _ids() -> list[str]:
    """What CUDA_VISIBLE_DEVICES lists, in its order; every GPU's index where it is not set."""
    import pynvml

    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return [str(index) for index in range(pynvml.nvmlDeviceGetCount())]
    return [id.strip() for id in allowed.split(",") if id.strip() not in ("", "-1")]


def _describe(id: str) -> Gpu:
    import pynvml

    by_index, by_uuid = pynvml.nvmlDeviceGetHandleByIndex, pynvml.nvmlDeviceGetHandleByUUID
    handle = by_index(int(id)) if id.isdigit() else by_uuid(id)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(id, str(pynvml.nvmlDeviceGetName(handle)), int(memory.free), int(memory.total))


def _check_port(host: str, port: int, flag: str) -> None:
    if not 0 < port < 65536:
        raise ConfigError(f"{flag} must lie between 1 and 65535, not {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"--host {host} is not an address or name that can be resolved") from error
    with socket.socket(family, kind, protocol) as probe:
        # As servers do, so that a port whose last user has just gone counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ConfigError(_why_not(error, host, port, flag)) from error


def _why_not(error: OSError, host: str, port: int, flag: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} on {host} is in use; stop what listens there or choose another with {flag}"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine; choose one with --host (127.0.0.1, 0.0.0.0)"
        case errno.EACCES:
            return f"port {port} needs privileges; choose one above 1023 with {flag}"
        case _:
            return f"cannot listen on {host} port {port} ({error.strerror}); choose another with {flag}"
