"""The attention of the plain forward: Hugging Face's, call for call, over a cache of its kind.

Sources: HF `sdpa_attention_forward`, `eager_attention_forward` and `create_causal_mask` (transformers 5.23).
Shape legend: B batch, T query tokens, S slots seen (T without a cache), N query heads, K KV heads, D head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_cluster.model.cache import Cache


class ReferenceAttention:
    """An `Attend` for one call of the plain forward: `mask` as `causal_mask` gives it, keys and values in `cache`."""

    def __init__(
        self,
        *,
        cache: Cache | None = None,
        mask: Tensor | None = None,
        eager: bool = False,
        dropout: float = 0.0,
        keep_weights: bool = False,
    ) -> None:
        self.weights: list[Tensor] = []  # [B, N, T, S] of each layer, where asked for
        self._cache = cache
        self._mask = mask
        self._eager = eager
        self._dropout = dropout
        self._keep_weights = keep_weights

    def __call__(self, layer: int, q_BTND: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q_BTND, k_BTKD, v_BTKD))
        if self._cache is not None:
            k, v = self._cache.update(k, v, layer)
        mixed = self._eagerly(q, k, v) if self._eager else _sdpa(q, k, v, self._mask, self._dropout)
        return mixed.transpose(1, 2)

    def _eagerly(self, q_BNTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor) -> Tensor:
        k, v = (_for_every_query_head(x, q_BNTD.shape[1]) for x in (k_BKSD, v_BKSD))
        scores_BNTS = torch.matmul(q_BNTD, k.transpose(2, 3)) * q_BNTD.shape[-1] ** -0.5
        if self._mask is not None:
            scores_BNTS = scores_BNTS + self._mask
        weights_BNTS = F.softmax(scores_BNTS, dim=-1, dtype=torch.float32).to(q_BNTD.dtype)
        weights_BNTS = F.dropout(weights_BNTS, p=self._dropout, training=self._dropout > 0)
        if self._keep_weights:
            self.weights.append(weights_BNTS)
        return torch.matmul(weights_BNTS, v)


def _sdpa(q_BNTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    num_heads, num_queries, width = q_BNTD.shape[1:]
    grouped = num_heads > k_BKSD.shape[1]
    q, k, v = q_BNTD, k_BKSD, v_BKSD
    share_heads = grouped and mask is None and width <= 256
    if grouped and not share_heads:
        if num_queries == 1:  # the query heads of a KV head stand as its queries
            q = q.reshape(q.shape[0], k.shape[1], -1, width)
            if mask is not None and mask.shape[1] > 1:
                mask = mask.reshape(q.shape[0], k.shape[1], -1, mask.shape[-1])
        else:
            k, v = (_for_every_query_head(x, num_heads) for x in (k, v))
    causal = mask is None and num_queries > 1
    if causal and k.shape[2] > num_queries:  # a static cache that held nothing: its empty slots are all to come
        k, v = k[:, :, :num_queries], v[:, :, :num_queries]
    mixed = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=width**-0.5, enable_gqa=share_heads
    )
    return mixed.reshape(q_BNTD.shape)


def _for_every_query_head(x_BKSD: Tensor, num_heads: int) -> Tensor:
    """Repeat each KV head for its query heads, [B, N, S, D]."""
    batch, kv_heads, slots, width = x_BKSD.shape
    if kv_heads == num_heads:
        return x_BKSD
    wide = x_BKSD[:, :, None].expand(batch, kv_heads, num_heads // kv_heads, slots, width)
    return wide.reshape(batch, num_heads, slots, width)


def causal_mask(
    attention_mask: Tensor | None,
    *,
    cache: Cache | None,
    positions_BT: Tensor,
    num_rows: int,
    dtype: torch.dtype,
    eager: bool,
) -> Tensor | None:
    """What HF makes of a 2-D mask (1 sees, 0 is padding), a cache and positions; a 4-D mask is taken as it is.

    For SDPA bool [B, 1, T, S] (True sees), or None where its own causal flag is enough; for eager, 0 and the dtype's
    lowest number. Positions that start again within a row, with neither mask nor cache, are packed sequences that do
    not see each other.
    """
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask
    device, num_queries = positions_BT.device, positions_BT.shape[-1]
    offset = 0 if cache is None else int(cache.get_seq_length())
    packs_BT = _packs(positions_BT) if attention_mask is None and cache is None else None
    if cache is not None:
        num_slots, _ = cache.get_mask_sizes(num_queries, 0)
    else:
        num_slots = num_queries if attention_mask is None else attention_mask.shape[-1]
    seen_BS = None if attention_mask is None else _padded(attention_mask.to(device, torch.bool), num_slots)
    # HF masks every step over a static cache, full or not: decoding is one graph there
    is_static_step = num_queries == 1 and cache is not None and cache.get_max_length() >= 0
    if not (eager or is_static_step) and packs_BT is None and _is_plain(seen_BS, num_queries, num_slots, offset):
        return None
    queries_T1 = (torch.arange(num_queries, device=device) + offset)[:, None]
    mask = (torch.arange(num_slots, device=device) <= queries_T1)[None, None].expand(num_rows, 1, -1, -1)
    if seen_BS is not None:
        mask = mask & seen_BS[:, None, None, :]
    if packs_BT is not None:
        mask = mask & (packs_BT[:, None, :, None] == packs_BT[:, None, None, :])
    if eager:
        return torch.where(mask, torch.zeros((), dtype=dtype, device=device), torch.finfo(dtype).min)
    return mask


def _padded(seen_BS: Tensor, num_slots: int) -> Tensor:
    """The mask over all slots: those it does not reach are not seen, those it has too many are dropped."""
    return F.pad(seen_BS, (0, max(0, num_slots - seen_BS.shape[-1])))[:, :num_slots]


def _is_plain(seen_BS: Tensor | None, num_queries: int, num_slots: int, offset: int) -> bool:
    """Whether SDPA's causal flag, or no mask at all for one query, says the same."""
    if num_queries in (1, num_slots):
        return seen_BS is None or bool(seen_BS.all())
    if offset != 0:
        return False
    return seen_BS is None or bool(seen_BS[:, :num_queries].all() and not seen_BS[:, num_queries:].any())


def _packs(positions_BT: Tensor) -> Tensor | None:
    """The number of the packed sequence each token belongs to; None where each row is one sequence."""
    steps_BT = torch.diff(positions_BT, prepend=positions_BT[:, :1] - 1, dim=-1)
    packs_BT = (steps_BT != 1).cumsum(-1)
    return packs_BT if bool((packs_BT[:, -1] != 0).any()) else None
