"""How likely a model finds tokens: the log-probability of one, its rank, and the likeliest. Knows no request.

Of the model's own logits: no parameter of a request has changed them. Shape legend: R rows, V vocabulary, K likeliest.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from glm_cluster.records import TokenLogprobs

_CACHED_ROWS = 8  # at a time on a CPU: more fall out of its caches between two passes, and take three times as long


def score(
    logits_RV: Tensor, tokens: Sequence[int], tops: Sequence[int], unused: Sequence[tuple[int, int]] = ()
) -> list[TokenLogprobs]:
    """Judge one token a row, and name as many of the likeliest as `tops` says.

    Likelier is a higher logit and, among equals, a lower id. Ids in the half-open ranges of `unused` have their share
    of the probability, as in every other program, and are never among the likeliest.
    """
    size = _CACHED_ROWS if logits_RV.device.type == "cpu" else len(logits_RV)
    judged: list[TokenLogprobs] = []
    for start in range(0, len(logits_RV), size):
        rows = slice(start, start + size)
        judged += _score(logits_RV[rows].float(), tokens[rows], tops[rows], unused)
    return judged


def _score(
    logits_RV: Tensor, tokens: Sequence[int], tops: Sequence[int], unused: Sequence[tuple[int, int]]
) -> list[TokenLogprobs]:
    logprobs_RV = logits_RV.log_softmax(dim=-1)
    if unused:
        logits_RV = logits_RV.clone()
    for start, stop in unused:
        logits_RV[:, start:stop] = float("-inf")
    tokens_R1 = torch.tensor(tokens, device=logits_RV.device).unsqueeze(1)
    best_RK = _likeliest(logits_RV, min(max(tops), logits_RV.shape[1]))
    rows = zip(
        logprobs_RV.gather(1, tokens_R1).squeeze(1).tolist(),
        _ranks(logits_RV, tokens_R1).tolist(),
        best_RK.tolist(),
        logprobs_RV.gather(1, best_RK).tolist(),
        tops,
        strict=True,
    )
    return [
        TokenLogprobs(own, rank, tuple(zip(ids[:top], values[:top], strict=True)))
        for own, rank, ids, values, top in rows
    ]


def _ranks(logits_RV: Tensor, tokens_R1: Tensor) -> Tensor:
    """How many are likelier than the token, and one."""
    own_R1 = logits_RV.gather(1, tokens_R1)
    ids_1V = torch.arange(logits_RV.shape[1], device=logits_RV.device).unsqueeze(0)
    equals_R = ((logits_RV == own_R1) & (ids_1V < tokens_R1)).count_nonzero(dim=1)
    return (logits_RV > own_R1).count_nonzero(dim=1) + equals_R + 1


def _likeliest(logits_RV: Tensor, count: int) -> Tensor:
    """Ids [R, K], best first. Which of equals a top-k takes, and in which order, is its own affair: ours is by id."""
    if count == 0:
        return torch.empty((len(logits_RV), 0), dtype=torch.int64, device=logits_RV.device)
    values_RK, ids_RK = logits_RV.topk(count, dim=1)
    num_candidates_R = (logits_RV >= values_RK[:, -1:]).count_nonzero(dim=1)
    for row in (num_candidates_R != count).nonzero().flatten().tolist():  # equals that are in, and equals that are not
        ids_RK[row] = logits_RV[row].sort(descending=True, stable=True).indices[:count]
    ids_RK = ids_RK.sort(dim=1).values
    order_RK = logits_RV.gather(1, ids_RK).sort(dim=1, descending=True, stable=True).indices
    return ids_RK.gather(1, order_RK)
