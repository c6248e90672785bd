"""What a request asks to be done to its logits before a token is chosen: masks, biases, penalties.

In vLLM's order, each with the meaning that HF, OpenAI or vLLM gave it. A function of the logits, the parameters and the
tokens so far. Shape legend: R rows, V vocabulary, N entries of [R, V].
"""

from array import array
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from glm_cluster.engine.past import Draw
from glm_cluster.records import SamplingParams

_NEVER = float("-inf")
_WORD_BITS = 32
_DTYPES = {"q": torch.int64, "f": torch.float32}


def edit(logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The logits as their requests ask, in fp32 where any asks something; the given tensor is left as it is."""
    rows = [row for row, draw in enumerate(draws) if draw.past.edits_logits]
    if not rows:
        return logits_RV
    if len(rows) == len(draws):
        return _edited(logits_RV, draws)
    edited_RV = logits_RV.to(torch.float32, copy=True)
    edited_RV[rows] = _edited(logits_RV[rows], [draws[row] for row in rows])
    return edited_RV


def _edited(logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    logits_RV = logits_RV.to(torch.float32, copy=True)
    _constrain(logits_RV, draws)
    _keep_allowed(logits_RV, draws)
    _forbid(logits_RV, draws)
    _add_bias(logits_RV, draws)
    _penalise_repetition(logits_RV, draws)
    _penalise_output(logits_RV, draws)
    return logits_RV


def _constrain(logits_RV: Tensor, draws: Sequence[Draw]) -> None:
    """Only what the grammar of a row lets come after its output."""
    masks = {row: mask for row, draw in enumerate(draws) if (mask := draw.past.allowed(draw.drafts)) is not None}
    if masks:
        words_RW1 = torch.from_numpy(np.stack(list(masks.values()))).to(logits_RV.device).unsqueeze(-1)
        bits_RV = (words_RW1 >> torch.arange(_WORD_BITS, device=logits_RV.device, dtype=torch.int32)) & 1
        _mask(logits_RV, list(masks), bits_RV.flatten(1)[:, : logits_RV.shape[1]] == 0)


def _keep_allowed(logits_RV: Tensor, draws: Sequence[Draw]) -> None:
    """Only the ids that a row names."""
    allowed = {row: ids for row, draw in enumerate(draws) if (ids := draw.past.allowed_ids) is not None}
    if allowed:
        masked_RV = torch.ones((len(allowed), logits_RV.shape[1]), dtype=torch.bool, device=logits_RV.device)
        masked_RV[_entries(enumerate(allowed.values()), logits_RV.device)] = False
        _mask(logits_RV, list(allowed), masked_RV)


def _mask(logits_RV: Tensor, rows: list[int], masked_RV: Tensor) -> None:
    logits_RV[rows] = logits_RV[rows].masked_fill(masked_RV, _NEVER)


def _forbid(logits_RV: Tensor, draws: Sequence[Draw]) -> None:
    """No stop token before its time, and no last token of a bad word after the others."""
    forbidden = ((row, array("q", draw.forbidden())) for row, draw in enumerate(draws))
    logits_RV[_entries(forbidden, logits_RV.device)] = _NEVER


def _add_bias(logits_RV: Tensor, draws: Sequence[Draw]) -> None:
    at = _entries(((row, draw.past.biased_ids) for row, draw in enumerate(draws)), logits_RV.device)
    biases_N = _joined([draw.past.biases for draw in draws], "f", logits_RV.device)
    logits_RV.index_put_(at, biases_N, accumulate=True)


def _penalise_repetition(logits_RV: Tensor, draws: Sequence[Draw]) -> None:
    """HF's: what has come, in the prompt too, is divided by the penalty where positive, else multiplied with it."""
    rows = [row for row, draw in enumerate(draws) if draw.sampling.repetition_penalty != 1]
    if rows:
        tallies = [draws[row].past.seen(draws[row].drafts) for row in rows]
        at = _entries(zip(rows, [tally.ids for tally in tallies], strict=True), logits_RV.device)
        old_N, penalty_N = logits_RV[at], _each(draws, lambda p: p.repetition_penalty, at[0])
        logits_RV[at] = torch.where(old_N < 0, old_N * penalty_N, old_N / penalty_N)


def _penalise_output(logits_RV: Tensor, draws: Sequence[Draw]) -> None:
    """OpenAI's: less by a penalty for each time that an id has come in the output, and by one for that it has."""
    rows = [row for row, d in enumerate(draws) if d.sampling.frequency_penalty or d.sampling.presence_penalty]
    if rows:
        tallies = [draws[row].past.said(draws[row].drafts) for row in rows]
        at = _entries(zip(rows, [tally.ids for tally in tallies], strict=True), logits_RV.device)
        counts_N = _joined([tally.counts for tally in tallies], "q", logits_RV.device)
        less_N = logits_RV[at] - _each(draws, lambda p: p.frequency_penalty, at[0]) * counts_N
        logits_RV[at] = less_N - _each(draws, lambda p: p.presence_penalty, at[0])


def _each(draws: Sequence[Draw], value: Callable[[SamplingParams], float], rows_N: Tensor) -> Tensor:
    """A row's value for each of its entries."""
    return torch.tensor([value(draw.sampling) for draw in draws], device=rows_N.device)[rows_N]


def _entries(ids: Iterable[tuple[int, "array[int]"]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and id of each entry, from the ids of some rows."""
    rows, arrays = zip(*ids, strict=True)
    rows_N = torch.tensor(rows).repeat_interleave(torch.tensor([len(one) for one in arrays]))
    return rows_N.to(device), _joined(arrays, "q", device)


def _joined(arrays: Sequence["array[int] | array[float]"], code: str, device: torch.device) -> Tensor:
    """The arrays one after another. A copy: an array that a tensor looks into cannot grow."""
    parts = [torch.frombuffer(one, dtype=_DTYPES[code]) for one in arrays if one]
    return torch.cat(parts).to(device) if parts else torch.empty(0, dtype=_DTYPES[code], device=device)
