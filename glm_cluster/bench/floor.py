"""How long a model's GEMMs and weight reads alone take on this machine: no attention, no norms, no scheduler.

Knows torch and shapes; loads no checkpoint. Weights are slices of one pool larger than the cache, taken in turn, so
that each call reads its weight from memory as a step of a real model does.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeAlias

from glm_cluster.bench.shapes import Gemm, chunks, gemms
from glm_cluster.bench.summary import percentile
from glm_cluster.model.config import GlmConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

POOL_BYTES = 256 << 20  # several times the last-level cache of any host we know
LEAST_S = 0.1  # spent on each measurement
Multiply: TypeAlias = "Callable[[Tensor], Tensor]"


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmTime:
    """The fastest way found to multiply `rows` rows by one weight: in what a tenth of the calls keep."""

    name: str
    rows: int
    path: str
    seconds: float
    count: int  # calls in a forward pass
    flop: int
    weight_bytes: int

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "gemm": self.name,
            "rows": self.rows,
            "path": self.path,
            "ms": round(self.seconds * 1000, 4),
            "gflop_per_s": round(self.flop / self.seconds / 1e9, 1),
            "gb_per_s": round(self.weight_bytes / self.seconds / 1e9, 2),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A forward pass's GEMMs, or those of several passes, added up."""

    name: str
    num_tokens: int
    seconds: float
    flop: int
    weight_bytes: int

    def row(self, read_bytes_per_s: float) -> dict[str, Any]:
        """As JSON values; `read_ms` is what reading the weights alone takes."""
        return {
            "pass": self.name,
            "ms": round(self.seconds * 1000, 3),
            "read_ms": round(self.weight_bytes / read_bytes_per_s * 1000, 3),
            "tokens_per_s": round(self.num_tokens / self.seconds, 1),
            "flop": self.flop,
            "weight_bytes": self.weight_bytes,
            "gflop_per_s": round(self.flop / self.seconds / 1e9, 1),
            "gb_per_s": round(self.weight_bytes / self.seconds / 1e9, 2),
        }


class Floor:
    """Times of one model's shapes in one dtype, each measured once when first asked for."""

    def __init__(self, config: GlmConfig, dtype: "torch.dtype", device: str) -> None:
        self._gemms = gemms(config)
        self._pool = _pool(self._gemms, dtype, device)
        self._times: dict[tuple[str, int], GemmTime] = {}

    def decode(self, rows: int) -> Pass:
        """One step that gives each of `rows` sequences a token."""
        return self._sum(f"decode x{rows}", rows, [(gemm, rows) for gemm in self._gemms])

    def prefill(self, num_tokens: int, step_tokens: int) -> Pass:
        """A prompt computed in steps of `step_tokens`; the head sees its last token alone."""
        *layers, head = self._gemms
        steps = chunks(num_tokens, step_tokens)
        met = [(gemm, rows) for rows in steps for gemm in layers]
        return self._sum(f"prefill {num_tokens} by {step_tokens}", num_tokens, [*met, (head, 1)])

    def read_bytes_per_s(self) -> float:
        """How fast the pool is read when nothing but a sum is made of it."""
        import torch

        words = self._pool.view(torch.float32)
        seconds = min(_seconds(words.sum, self._pool.device) for _ in range(5))
        return self._pool.numel() * self._pool.element_size() / seconds

    @property
    def dtype_name(self) -> str:
        """What was multiplied."""
        return str(self._pool.dtype).removeprefix("torch.")

    @property
    def num_threads(self) -> int:
        """Of torch, on a CPU."""
        import torch

        return torch.get_num_threads()

    @property
    def times(self) -> tuple[GemmTime, ...]:
        """All that were measured so far."""
        return tuple(self._times.values())

    def _sum(self, name: str, num_tokens: int, met: Sequence[tuple[Gemm, int]]) -> Pass:
        times = [self._time(gemm, rows) for gemm, rows in met]
        return Pass(
            name=name,
            num_tokens=num_tokens,
            seconds=sum(time.seconds * time.count for time in times),
            flop=sum(time.flop * time.count for time in times),
            weight_bytes=sum(time.weight_bytes * time.count for time in times),
        )

    def _time(self, gemm: Gemm, rows: int) -> GemmTime:
        key = (gemm.name, rows)
        if key not in self._times:
            self._times[key] = _measured(gemm, rows, self._pool)
        return self._times[key]


def _pool(shapes: Sequence[Gemm], dtype: "torch.dtype", device: str) -> "Tensor":
    import torch

    item = dtype.itemsize
    size = max(POOL_BYTES, *(gemm.weight_bytes(item) for gemm in shapes)) // item
    return torch.empty(size + size % 2, dtype=dtype, device=device).uniform_(-0.05, 0.05)


def _measured(gemm: Gemm, rows: int, pool: "Tensor") -> GemmTime:
    import torch

    x = torch.empty(rows, gemm.num_in, dtype=pool.dtype, device=pool.device).uniform_(-1, 1)
    size = gemm.num_in * gemm.num_out
    weights = [pool[at : at + size].view(gemm.num_out, gemm.num_in) for at in range(0, pool.numel() - size + 1, size)]
    found = {name: _per_call(calls, x) for name, calls in paths(weights, rows).items()}
    path = min(found, key=lambda name: found[name])
    return GemmTime(
        name=gemm.name,
        rows=rows,
        path=path,
        seconds=found[path],
        count=gemm.count,
        flop=gemm.flop(rows),
        weight_bytes=gemm.weight_bytes(pool.element_size()),
    )


def paths(weights: "Sequence[Tensor]", rows: int) -> dict[str, list[Multiply]]:
    """The ways to multiply: torch's own, on a CPU with bf16 units the one with weights packed beforehand, and ours."""
    import torch
    import torch.nn.functional as F

    found: dict[str, list[Multiply]] = {"linear": [lambda x, w=w: F.linear(x, w) for w in weights]}  # type: ignore[misc]
    on_cpu = weights[0].device.type == "cpu" and torch.backends.mkldnn.is_available()
    if on_cpu and weights[0].dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        reorder, multiply = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
        packed = [reorder(weight, rows) for weight in weights]
        found["prepacked"] = [lambda x, w=w: multiply(x, w, None, "none", [], "") for w in packed]  # type: ignore[misc]
    if weights[0].device.type == "cpu" and (ours := _kernels(weights)):
        found["kernels"] = ours
    return found


def _kernels(weights: "Sequence[Tensor]") -> list[Multiply]:
    """The engine's own way on a CPU, where it has one."""
    import torch

    from glm_cluster.model.kernels.build import Refusal
    from glm_cluster.model.kernels.native import DTYPES, library
    from glm_cluster.model.kernels.packed import PackedLinear
    from glm_cluster.model.threads import usable_cores

    native = library()
    if isinstance(native, Refusal) or weights[0].dtype not in DTYPES:
        return []
    native.glm_set_threads(min(torch.get_num_threads(), usable_cores()))
    packed = []
    for weight in weights:
        num_out, num_in = weight.shape
        linear = torch.nn.Linear(num_in, num_out, bias=False, device="meta")
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        packed.append(PackedLinear(native, [linear]))
    return list(packed)


def _per_call(calls: Sequence[Multiply], x: "Tensor") -> float:
    """The time that a tenth of the calls keep, each with the weight that was not used for longest.

    Not the median: what neighbours on the machine add is no part of a floor.
    """
    turn = cycle(calls)
    next(turn)(x)  # the first pays for the library's plan
    times: list[float] = []
    while sum(times) < LEAST_S or len(times) < 5:
        call = next(turn)
        times.append(_seconds(lambda call=call: call(x), x.device))  # type: ignore[misc]
    return percentile(sorted(times), 10)


def _seconds(call: "Callable[[], Tensor]", device: "torch.device") -> float:
    import torch

    started = time.perf_counter()
    with torch.inference_mode():
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
