"""The rows under way: their ids, mask and positions, and what the cache has not seen, as Hugging Face keeps them.

Knows the arguments of a forward pass; knows no model, and not how a token is chosen. Shape legend: B rows, T ids so
far, S tokens seen by attention (a cache's included), H hidden size.
"""

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from glm_cluster.model.generation.config import GenerationConfig

logger = logging.getLogger(__name__)


class Cache(Protocol):
    """The keys and values of the tokens already seen."""

    def get_seq_length(self) -> int: ...


@dataclass(slots=True, kw_only=True)
class Rows:
    """The rows under way: ids, mask (None: no padding anywhere), positions, and what the cache has not seen."""

    ids_BT: Tensor
    embeds_BTH: Tensor | None
    mask_BS: Tensor | None
    positions_BS: Tensor
    cache: Cache | None
    use_cache: bool
    num_unseen: int

    @classmethod
    def start(
        cls,
        settings: GenerationConfig,
        ids_BT: Tensor,
        embeds_BTH: Tensor | None,
        *,
        mask_BS: Tensor | None,
        positions_BS: Tensor | None,
        cache: Cache | None,
    ) -> "Rows":
        """Fill in mask and positions as HF does, and repeat each row `num_return_sequences` times."""
        prompt = embeds_BTH if embeds_BTH is not None and not ids_BT.shape[1] else ids_BT
        mask_BS = _mask(settings, prompt, mask_BS)
        positions_BS = _positions(mask_BS) if positions_BS is None else positions_BS
        num_unseen = _num_unseen(ids_BT, embeds_BTH, mask_BS, cache)
        copies = settings.num_return_sequences or 1
        return cls(
            ids_BT=ids_BT.repeat_interleave(copies, dim=0),
            embeds_BTH=None if embeds_BTH is None else embeds_BTH.repeat_interleave(copies, dim=0),
            # Without a mask the forward takes the same kernels as HF's, hence the same bits.
            mask_BS=None if (mask_BS == 1).all() else mask_BS.repeat_interleave(copies, dim=0),
            positions_BS=positions_BS.repeat_interleave(copies, dim=0),
            cache=cache,
            use_cache=bool(settings.use_cache) or embeds_BTH is not None,
            num_unseen=num_unseen,
        )

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """The arguments of the next forward pass."""
        unseen = slice(-self.num_unseen, None)
        tensors = {"position_ids": self.positions_BS[:, unseen]}
        if self.embeds_BTH is not None:
            tensors["inputs_embeds"] = self.embeds_BTH[:, unseen]
        else:
            tensors["input_ids"] = self.ids_BT[:, unseen]
        if self.mask_BS is not None:
            tensors["attention_mask"] = self.mask_BS
        moved = {name: tensor.to(device).contiguous() for name, tensor in tensors.items()}
        return {**moved, "past_key_values": self.cache, "use_cache": self.use_cache, "logits_to_keep": 1}

    def append(self, tokens_B: Tensor, cache: Cache | None) -> None:
        """Take the chosen tokens, and the cache that has seen all but them."""
        self.ids_BT = torch.cat([self.ids_BT, tokens_B[:, None]], dim=-1)
        self.positions_BS = torch.cat([self.positions_BS, self.positions_BS[:, -1:] + 1], dim=-1)
        if self.mask_BS is not None:
            self.mask_BS = torch.cat([self.mask_BS, self.mask_BS.new_ones(self.mask_BS.shape[0], 1)], dim=-1)
        self.embeds_BTH = None
        self.cache = cache if self.use_cache else None
        self.num_unseen = 1 if self.use_cache else self.ids_BT.shape[1]


def _mask(settings: GenerationConfig, prompt: Tensor, given_BS: Tensor | None) -> Tensor:
    """The caller's mask; else the padding ids are masked, unless they might be meant as ends of sequences."""
    pad, rows = settings.pad_token_id, prompt.shape[0]
    if given_BS is not None:
        if given_BS.ndim != 2:
            raise ValueError(f"attention_mask must be [rows, tokens], not of shape {tuple(given_BS.shape)}")
        if rows > 1 and given_BS.shape == prompt.shape[:2] and bool((given_BS[:, -1] == 0).any()):
            logger.warning("the batch is padded on the right; pad it on the left, or its continuations are wrong")
        return given_BS
    if pad is None or prompt.ndim != 2:
        return torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
    if pad in settings.eos_token_ids:
        if rows > 1:
            logger.warning("a batch without attention_mask, and its padding id also ends sequences: nothing is masked")
        return torch.ones_like(prompt, dtype=torch.long)
    return prompt.ne(pad).long()


def _positions(mask_BS: Tensor) -> Tensor:
    """Count from each row's first real token."""
    return (mask_BS.long().cumsum(dim=-1) - 1).masked_fill(mask_BS == 0, 0)


def _num_unseen(ids_BT: Tensor, embeds_BTH: Tensor | None, mask_BS: Tensor, cache: Cache | None) -> int:
    """How many trailing tokens the cache lacks. A mask longer than the ids says that they are only the new ones."""
    length = ids_BT.shape[1] if embeds_BTH is None else embeds_BTH.shape[1]
    if cache is None or (embeds_BTH is None and mask_BS.shape[1] != length):
        return length
    unseen = length - cache.get_seq_length()
    if unseen < 1:
        raise ValueError(
            f"past_key_values holds {cache.get_seq_length()} tokens and the prompt {length}; give the whole prompt, or "
            "only its new tokens with an attention_mask over all of them"
        )
    return unseen
