"""One rank's model and KV cache: turn a step plan into what its head makes of it. Never touches a queue."""

from pathlib import Path
from typing import Self

import torch

from glm_cluster.config import EngineConfig
from glm_cluster.engine import memory
from glm_cluster.engine.batch import Batch
from glm_cluster.engine.heads import Head, IdRanges, ServedModel, head_of
from glm_cluster.engine.memory import KvLimits
from glm_cluster.engine.plan import StepOutput, StepPlan
from glm_cluster.model.attention import KvCache
from glm_cluster.model.backend import Backend, load_with_backend
from glm_cluster.model.checkpoints.checkpoint import ReadProgress
from glm_cluster.model.ranks import Ranks
from glm_cluster.model.sharding import Sharding


class ModelRunner:
    """Every rank of a group runs the same plans in the same order; rank 0 answers."""

    def __init__(self, model: ServedModel, backend: Backend, head: Head, cache: KvCache, limits: KvLimits) -> None:
        self.limits = limits
        self._backend = backend
        self._device = model.ranks.device
        self._decoder = model.decoder
        self._head = head
        self._cache = cache

    @classmethod
    def load(
        cls,
        config: EngineConfig,
        ranks: Ranks,
        *,
        on_read: ReadProgress | None = None,
        host_ranks: int = 1,
        unused_token_ids: IdRanges = (),
    ) -> Self:
        """Load this rank's weights and take its KV cache. `host_ranks` of the group share this host's memory.

        The group agrees on the smallest number of blocks any rank can hold. Ids in `unused_token_ids` are never
        sampled.
        """
        model: ServedModel
        model, backend = load_with_backend(
            Path(config.model),
            ranks=ranks,
            dtype=config.dtype,
            quantization=config.quantization,
            task=config.task,
            on_read=on_read,
        )
        max_model_len = memory.max_model_len(config, model.config)
        model.decoder.rotary.fix_length(max_model_len)  # one length for all: neighbours must not change it
        shard = Sharding(model.config, ranks.rank, ranks.size)
        blocks = memory.plan_blocks(
            config, model=model.config, shard=shard, dtype=model.dtype, device=ranks.device, host_ranks=host_ranks
        )
        blocks = ranks.least(blocks)
        cache = memory.allocate(
            model=model.config,
            shard=shard,
            num_blocks=blocks,
            block_tokens=config.block_tokens,
            dtype=model.dtype,
            device=ranks.device,
        )
        return cls(model, backend, head_of(model, unused_token_ids), cache, KvLimits(blocks, max_model_len))

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepOutput:
        """Run one forward pass; on rank 0, answer the slices that want it."""
        backend, cache = self._backend, self._cache
        batch = Batch.build(
            plan, block_tokens=cache.block_tokens, device=self._device, row_multiple=backend.row_multiple
        )
        x_TH = self._decoder.hidden(batch.ids_T, batch.positions_P, backend.attention(cache, batch.ragged))
        return self._head(x_TH[batch.rows_R], batch)
