"""How many KV blocks a rank can hold. Reads free memory; allocates the cache."""

import mmap
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from glm_cluster.config import EngineConfig
from glm_cluster.engine.scheduler import DRAFT_ROWS
from glm_cluster.errors import ConfigError
from glm_cluster.model.attention import GATHER_BYTES, ROW_MULTIPLE, SCORE_BYTES, KvCache
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.sharding import Sharding

CPU_SHARE = 0.25  # of available memory, for one group's ranks on this host
CUDA_SHARE = 0.95  # of what weights and activations leave; fragmentation needs the rest


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
    max_len = max_model_len(config, model)
    useful = 2 * config.max_running * -(-max_len // config.block_tokens)
    budget = config.kv_cache_bytes or _free_share(config, model, shard, device, host_ranks)
    fitting = budget // per_block * config.block_tokens
    if fitting < max_len:
        need = -(-max_len // config.block_tokens) * per_block
        raise ConfigError(
            f"the KV cache of one sequence of {max_len} tokens takes {need >> 20} MiB on each rank, and {budget >> 20} "
            f"MiB are there for it; lower max_model_len ({fitting} tokens fit), raise kv_cache_bytes, free memory, or "
            "use a larger tp"
        )
    return min(budget // per_block, useful) + 1


def max_model_len(config: EngineConfig, model: GlmConfig) -> int:
    """Tokens of the longest sequence: what was asked for, else all that the checkpoint's positions allow."""
    limit = model.context_limit
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ConfigError(
            f"max_model_len {config.max_model_len} is more than the {limit} tokens that the checkpoint's positions "
            f"allow; set it to {limit} or less, or leave it out"
        )
    return config.max_model_len or limit


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


def _free_share(config: EngineConfig, model: GlmConfig, shard: Sharding, device: torch.device, host_ranks: int) -> int:
    """This rank's part of what is free now. A card is the rank's own; a host is shared."""
    if device.type == "cuda":
        return max(0, int((free_bytes(device) - activation_bytes(config, model, shard)) * CUDA_SHARE))
    return int(free_bytes(device) * CPU_SHARE / host_ranks)


def activation_bytes(config: EngineConfig, model: GlmConfig, shard: Sharding) -> int:
    """A bound on what one step takes beside weights and cache: the widest tensors that live at the same time."""
    widest = 4 * model.hidden_size + 3 * model.intermediate_size
    if config.task == "generate":
        rows = max(config.max_running, DRAFT_ROWS if config.speculative_tokens else 0)
        answering = rows * model.vocab_size * 48  # logits, sorted copy, order, two fp64 sums, masks
    else:
        answering = config.step_tokens * model.hidden_size * 48  # rows, a copy in fp32, what a mean cuts them into
    # Attention unpacks one sequence in fp32, and computes the fewest rows it can, however long the context is.
    keys = 4 * max_model_len(config, model) * shard.num_kv_heads
    attention = max(GATHER_BYTES, 2 * keys * model.head_dim) + 3 * max(SCORE_BYTES, keys * ROW_MULTIPLE)
    return attention + config.step_tokens * widest * 4 + answering


def _cgroup_room() -> list[int]:
    """Bytes left under the container's memory limit, for cgroup v2 and v1; empty when there is no limit.

    Clean page cache counts as free: reading a checkpoint fills it, and the kernel gives it back.
    """
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        path = Path("/sys/fs/cgroup") / limit
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            stat = dict(line.split() for line in path.with_name("memory.stat").read_text().splitlines())
            used = int((Path("/sys/fs/cgroup") / usage).read_text()) - int(stat["inactive_file"])
            return [max(0, int(text) - used)]
    return []
