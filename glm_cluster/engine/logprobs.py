"""How likely a model finds tokens: the log-probability of one, its rank, and the likeliest. Knows no request.

Of the model's own logits: no parameter of a request has changed them. Shape legend: R rows, V vocabulary, K likeliest.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from glm_cluster.records import TokenLogprobs

_ALL_BUT_SIGN = 0x7FFFFFFF


def score(
    logits_RV: Tensor, tokens: Sequence[int], tops: Sequence[int], unused: Sequence[tuple[int, int]] = ()
) -> list[TokenLogprobs]:
    """Judge one token a row, and name as many of the likeliest as `tops` says.

    Likelier is a higher logit and, among equals, a lower id. Ids in the half-open ranges of `unused` have their share
    of the probability, as in every other program, and are never among the likeliest.
    """
    logprobs_RV = logits_RV.float().log_softmax(dim=-1)
    order_RV = _order(logits_RV, unused)
    tokens_R1 = torch.tensor(tokens, device=logits_RV.device).unsqueeze(1)
    ranks = (order_RV > order_RV.gather(1, tokens_R1)).sum(dim=1) + 1
    most = min(max(tops), logits_RV.shape[1])
    best_RK = order_RV.topk(most, dim=1).indices
    rows = zip(
        logprobs_RV.gather(1, tokens_R1).squeeze(1).tolist(),
        ranks.tolist(),
        best_RK.tolist(),
        logprobs_RV.gather(1, best_RK).tolist(),
        tops,
        strict=True,
    )
    return [
        TokenLogprobs(own, rank, tuple(zip(ids[:top], values[:top], strict=True)))
        for own, rank, ids, values, top in rows
    ]


def _order(logits_RV: Tensor, unused: Sequence[tuple[int, int]]) -> Tensor:
    """Integers without equals that are ordered as the logits are, the lower of two ids first.

    The bits of a float are ordered as it is where it is positive, and the other way round where it is not.
    """
    logits_RV = logits_RV.float() + 0.0  # no negative zero, which equals zero and has other bits
    for start, stop in unused:
        logits_RV[:, start:stop] = float("-inf")
    bits_RV = logits_RV.view(torch.int32)
    bits_RV = bits_RV ^ ((bits_RV >> 31) & _ALL_BUT_SIGN)
    ids_1V = torch.arange(logits_RV.shape[1], device=logits_RV.device).unsqueeze(0)
    return (bits_RV.long() << 32) - ids_1V
