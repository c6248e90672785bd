"""The processes of one tensor-parallel group and the collectives between them.

Every collective of the forward pass is a named call on `Ranks` at the line where it happens. A group is a value, not
process-wide state: two groups in one process do not notice each other.
"""

from datetime import timedelta
from typing import Literal, Self, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import Store

from glm_cluster.errors import ConfigError
from glm_cluster.model.shared_memory import SharedMemory

Backend: TypeAlias = Literal["gloo", "nccl"]

JOIN_TIMEOUT_S = 120.0
COLLECTIVE_TIMEOUT_S = 600.0  # the step deadline of the engine is shorter and kills the group first


def open_store(host: str) -> TCPStore:
    """Listen on `host` at a port the kernel picks (read `.port`); rank 0 calls this, nobody waits."""
    return TCPStore(host, 0, None, True, timeout=timedelta(seconds=JOIN_TIMEOUT_S), wait_for_workers=False)


def connect_store(host: str, port: int) -> TCPStore:
    """Join the store that rank 0 opened."""
    return TCPStore(host, port, None, False, timeout=timedelta(seconds=JOIN_TIMEOUT_S))


class Ranks:
    """One rank's view of its group. `device` is where its tensors live."""

    def __init__(
        self,
        rank: int,
        size: int,
        device: torch.device,
        group: dist.ProcessGroup | None,
        shared: SharedMemory | None = None,
    ) -> None:
        self.rank = rank
        self.size = size
        self.device = device
        self._group = group
        self._shared = shared  # where there is some, tensors go through it, and the group is for starting

    @classmethod
    def single(cls, device: str = "cpu") -> Self:
        """A group of one: every collective is the identity."""
        return cls(0, 1, torch.device(device), None)

    @classmethod
    def join(
        cls,
        *,
        rank: int,
        size: int,
        store: Store,
        device: str = "cpu",
        host: str = "127.0.0.1",
        backend: Backend | None = None,
    ) -> Self:
        """Meet the other ranks at `store`. `host` is this rank's own address, the one the others can reach.

        NCCL on CUDA; on CPU shared memory where all ranks can share some, else gloo. With a `backend` that one alone
        (gloo over CUDA tensors works, slowly).
        """
        if size == 1:
            return cls.single(device)
        chosen = backend or ("nccl" if device.startswith("cuda") else "gloo")
        group = _nccl(store, rank, size) if chosen == "nccl" else _gloo(store, rank, size, host)
        ranks = cls(rank, size, torch.device(device), group)
        ranks.least(0)  # connect now: NCCL takes its buffers before free memory is measured, and nobody loads yet
        if backend is None and device == "cpu":
            ranks._shared = SharedMemory.meet(
                store=store, rank=rank, size=size, least=ranks.least, timeout_s=COLLECTIVE_TIMEOUT_S
            )
        return ranks

    def sum(self, x: Tensor) -> Tensor:
        """Add up the ranks' partial results: the all-reduce of the forward pass, any shape, same on every rank.

        gloo's own ring adds each element in an order that depends on where it lies in the buffer, so a row's bits
        would depend on its batch. Here, and in shared memory to the same bits, the parts are exchanged and added in
        rank order, in fp32.
        """
        if self._group is None:
            return x
        if self._shared is not None and self._shared.can_sum(x):
            return self._shared.sum(x)
        if isinstance(self._group, ProcessGroupGloo):
            parts = [torch.empty_like(x) for _ in range(self.size)]
            self._group.allgather([parts], [x.contiguous()]).wait()
            total = parts[0].float()
            for part in parts[1:]:
                total += part
            return total.to(x.dtype)
        self._group.allreduce([x]).wait()
        return x

    def gather(self, x: Tensor) -> Tensor | None:
        """Join the ranks' [R, v] along the last dimension on rank 0, [R, v * size]; None on the others."""
        if self._group is None:
            return x
        if self._shared is not None:
            return self._shared.gather(x)
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else []
        options = dist.GatherOptions()
        options.rootRank = 0
        self._group.gather([parts] if parts else [], [x.contiguous()], options).wait()
        return torch.cat(parts, dim=-1) if parts else None

    def least(self, value: int) -> int:
        """The smallest `value` of any rank. Used at start-up only."""
        if self._group is None:
            return value
        x = torch.tensor([value], dtype=torch.int64, device=self.device)
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MIN  # type: ignore[assignment]
        self._group.allreduce([x], options).wait()
        return int(x.item())


def resolve_device(name: str) -> str:
    """Turn the setting `device` into a torch device name."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device is 'cuda', but torch finds no CUDA device; use 'cpu', or install a CUDA build of torch"
        )
    return name


def choose_device(device_map: object, num_bytes: int) -> torch.device:
    """Where HF's `device_map` puts a whole model: a named device, or for "auto" CUDA if there is room, else the CPU."""
    if isinstance(device_map, dict):
        if set(device_map) != {""}:
            raise ConfigError('device_map places the whole model: give "auto", a device, or {"": device}')
        device_map = device_map[""]
    if device_map is None:
        return torch.device("cpu")
    if device_map != "auto":
        return _named_device(device_map)
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > num_bytes:
        return torch.device("cuda")
    return torch.device("cpu")


def _named_device(name: object) -> torch.device:
    try:
        device = torch.device(name)  # type: ignore[call-overload]
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f'device_map {name!r} is no device; give "auto", "cpu" or "cuda"') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f'device_map {name!r} asks for CUDA, and torch finds no such device; give "auto" or "cpu"')
    assert isinstance(device, torch.device)
    return device


def _gloo(store: Store, rank: int, size: int, host: str) -> dist.ProcessGroup:
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    return ProcessGroupGloo(store, rank, size, options)  # type: ignore[return-value]


def _nccl(store: Store, rank: int, size: int) -> dist.ProcessGroup:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    return dist.ProcessGroupNCCL(store, rank, size, options)  # type: ignore[return-value]
