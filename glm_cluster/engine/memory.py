"""How many KV blocks a rank can hold. Reads free memory; allocates the cache."""

import mmap
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from glm_cluster.config import EngineConfig
from glm_cluster.errors import ConfigError
from glm_cluster.model.attention import KvCache
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.sharding import Sharding

CPU_SHARE = 0.25  # of available memory, for one group's ranks on this host
CUDA_SHARE = 0.90  # of what the weights left; activations need the rest


@dataclass(frozen=True, slots=True)
class KvLimits:
    """What a group found it can hold: the scheduler's bounds."""

    num_blocks: int  # scratch block included
    max_model_len: int


def plan_blocks(
    config: EngineConfig,
    *,
    model: GlmConfig,
    shard: Sharding,
    dtype: torch.dtype,
    device: torch.device,
    host_ranks: int,
) -> int:
    """Blocks this rank can hold, the scratch block included; at most twice what can run at once, to keep prefixes."""
    per_block = block_bytes(config, model, shard, dtype)
    max_len = config.max_model_len or model.max_position_embeddings
    useful = 2 * config.max_running * -(-max_len // config.block_tokens)
    budget = config.kv_cache_bytes or int(free_bytes(device) * _share(device) / _sharers(device, host_ranks))
    count = min(budget // per_block, useful)
    if count < 1:
        raise ConfigError(
            f"no room for a KV cache: {budget} bytes are free for it and one block of {config.block_tokens} tokens "
            f"takes {per_block}; free memory, raise kv_cache_bytes, or use a larger tp"
        )
    return count + 1


def block_bytes(config: EngineConfig, model: GlmConfig, shard: Sharding, dtype: torch.dtype) -> int:
    """Bytes of one block on this rank: keys and values of every layer."""
    slots = model.num_hidden_layers * config.block_tokens
    return 2 * slots * shard.num_kv_heads * model.head_dim * dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Memory that could be taken now: the card's, or the host's within this container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return min([available, *_cgroup_room()])


def allocate(
    *, model: GlmConfig, shard: Sharding, num_blocks: int, block_tokens: int, dtype: torch.dtype, device: torch.device
) -> KvCache:
    """Make the cache. On the host its pages are mapped only as they are used."""
    shape = (shard.num_kv_heads, num_blocks, block_tokens, model.head_dim)
    new = _lazy_zeros if device.type == "cpu" else lambda s, d: torch.zeros(s, dtype=d, device=device)
    layers = range(model.num_hidden_layers)
    return KvCache([new(shape, dtype) for _ in layers], [new(shape, dtype) for _ in layers])


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    pages = mmap.mmap(-1, prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def _share(device: torch.device) -> float:
    return CUDA_SHARE if device.type == "cuda" else CPU_SHARE


def _sharers(device: torch.device, host_ranks: int) -> int:
    return 1 if device.type == "cuda" else host_ranks


def _cgroup_room() -> list[int]:
    """Bytes left under the container's memory limit, for cgroup v2 and v1; empty when there is no limit."""
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if Path(limit).is_file() and (text := Path(limit).read_text().strip()).isdigit():
            return [max(0, int(text) - int(Path(usage).read_text()))]
    return []
