"""Logits to tokens: a pure function of (logits row, parameters, seed, position). No state, no global generator.

Random numbers come from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), keyed
by the seed and counted by the position, so any row can be drawn again anywhere.
Shape legend: R rows, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from glm_cluster.records import SamplingParams

_LOWEST_TEMPERATURE = 1e-5
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_UNIT = 2.0**60


def sample(logits_RV: Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
    """Choose one token a row. Temperature 0 takes the most likely; else temperature, top_k, top_p, min_p, draw.

    A row in which everything is masked gives id 0.
    """
    tokens_R = logits_RV.argmax(dim=-1)
    drawn = [row for row, p in enumerate(params) if p.temperature > 0]
    if drawn:
        rows = torch.tensor(drawn, device=logits_RV.device)
        chosen = [params[row] for row in drawn]
        tokens_R[rows] = _draw(logits_RV[rows], chosen, [positions[row] for row in drawn])
    return [int(t) for t in tokens_R.tolist()]


def _draw(logits_RV: Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> Tensor:
    device = logits_RV.device
    # Below this, division overflows fp32; the wire makes 0 of such values, an engine must survive them.
    temperature_R1 = torch.tensor([max(p.temperature, _LOWEST_TEMPERATURE) for p in params], device=device).unsqueeze(1)
    probs_RV, order_RV = (logits_RV.float() / temperature_R1).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    probs_RV = _filter(probs_RV, params)
    seeds = torch.tensor([p.seed for p in params], dtype=torch.int64, device=device)
    uniform_R = philox_uniform(seeds, torch.tensor(positions, dtype=torch.int64, device=device))
    mass_RV = _mass(probs_RV)
    target_R1 = (uniform_R * mass_RV[:, -1]).long().unsqueeze(1)
    rank_R1 = torch.searchsorted(mass_RV, target_R1, right=True).clamp_(max=mass_RV.shape[1] - 1)
    # Rounding may not carry a draw past the kept tokens; a row of NaN keeps none and gets its first.
    last_R1 = ((probs_RV > 0).sum(dim=-1, keepdim=True) - 1).clamp_(min=0)
    return order_RV.gather(1, torch.minimum(rank_R1, last_R1)).squeeze(1)


def _filter(probs_RV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Zero what each row's filters remove from probabilities sorted from most to least likely; renormalise between.

    The order and the meaning of the filters are HF's logits warpers'; the most likely token always stays.
    """
    device, width = probs_RV.device, probs_RV.shape[1]
    ranks_1V = torch.arange(width, device=device).unsqueeze(0)
    keep_R1 = torch.tensor([min(p.top_k or width, width) for p in params], device=device).unsqueeze(1)
    probs_RV = probs_RV.masked_fill(ranks_1V >= keep_R1, 0)
    top_ps = [1.0 if p.top_p is None else p.top_p for p in params]
    top_p_R1 = torch.tensor(top_ps, dtype=torch.float64, device=device).unsqueeze(1)
    mass_RV = _mass(probs_RV)
    before_RV = mass_RV.roll(1, dims=-1)  # of the tokens ahead; nothing is asked of the first
    cut_RV = (before_RV >= top_p_R1 * mass_RV[:, -1:]) & (top_p_R1 < 1)
    probs_RV = probs_RV.masked_fill(cut_RV & (ranks_1V > 0), 0)
    min_p_R1 = torch.tensor([p.min_p or 0.0 for p in params], device=device).unsqueeze(1)
    return probs_RV.masked_fill(probs_RV < min_p_R1 * probs_RV[:, :1], 0)


def _mass(probs_RV: Tensor) -> Tensor:
    """The running sum of probabilities, in units of 2**-60: whole numbers, whose sum no order of adding changes.

    CUDA adds floats up in an order of its own each time.
    """
    return (probs_RV.double() * _UNIT).long().cumsum(dim=-1)


def philox_uniform(seeds_R: Tensor, positions_R: Tensor) -> Tensor:
    """One fp64 number in [0, 1) for each (seed, position), both int64 of 0 or more; shape [R]."""
    key = [seeds_R & _MASK, (seeds_R >> 32) & _MASK]
    zero = torch.zeros_like(positions_R)
    counter = [positions_R & _MASK, (positions_R >> 32) & _MASK, zero, zero]
    for _ in range(_ROUNDS):
        counter = _philox_round(counter, key)
        key = [(k + w) & _MASK for k, w in zip(key, _WEYL, strict=True)]
    bits_R = (counter[0] << 21) ^ (counter[1] >> 11)  # 53 bits
    return bits_R.double() * 2.0**-53


def _philox_round(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    # int64 products wrap, but their 64 bits are those of the unsigned product.
    first, second = counter[0] * _MULTIPLIERS[0], counter[2] * _MULTIPLIERS[1]
    return [
        ((second >> 32) & _MASK) ^ counter[1] ^ key[0],
        second & _MASK,
        ((first >> 32) & _MASK) ^ counter[3] ^ key[1],
        first & _MASK,
    ]
