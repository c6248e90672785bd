"""What a language model is asked, written once and put to both models of a pair: each gives the tensors to compare.

Three rows of 19, 12 and 5 tokens where they are padded. Padding rows take part in the comparison: what HF computes for
a token that nobody reads, we compute too.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from support.parity import Side, ids
from torch import Tensor

Scenario: TypeAlias = Callable[[Side], list[Tensor]]

LENGTH = 19
IDS_BT = ids(3, LENGTH)
RIGHT_BT = (torch.arange(LENGTH) < torch.tensor([[19], [12], [5]])).long()
LEFT_BT = RIGHT_BT.flip(-1)
CHUNKS = (9, 7, 1, 1, 1)


def padded(mask_BT: Tensor) -> Tensor:
    """The ids with padding where the mask is 0."""
    return IDS_BT * mask_BT


def positions(mask_BT: Tensor) -> Tensor:
    """What `generate` counts: from each row's first real token."""
    return (mask_BT.cumsum(-1) - 1).clamp(min=0)


def held(cache: Any) -> list[Tensor]:
    """Every layer's keys and values."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def in_chunks(
    side: Side,
    cache: Any,
    mask_BT: Tensor | None = None,
    positions_BT: Tensor | None = None,
    sizes: Sequence[int] = CHUNKS,
) -> list[Tensor]:
    """Logits of each chunk, then all that the cache holds."""
    rows_BT = IDS_BT if mask_BT is None else padded(mask_BT)
    given: list[Tensor] = []
    start = 0
    for size in sizes:
        stop = start + size
        output = side.model(
            rows_BT[:, start:stop],
            attention_mask=None if mask_BT is None else mask_BT[:, :stop],
            position_ids=None if positions_BT is None else positions_BT[:, start:stop],
            past_key_values=cache,
        )
        given.append(output.logits)
        start = stop
    return given + held(cache)


def whole(side: Side) -> list[Tensor]:
    return [side.model(IDS_BT, use_cache=False).logits]


def full_mask(side: Side) -> list[Tensor]:
    return [side.model(IDS_BT, attention_mask=torch.ones_like(IDS_BT), use_cache=False).logits]


def one_token(side: Side) -> list[Tensor]:
    output = side.model(IDS_BT[:, :1])
    return [output.logits, *held(output.past_key_values)]


def left_padding(side: Side) -> list[Tensor]:
    return [side.model(padded(LEFT_BT), LEFT_BT, positions(LEFT_BT), use_cache=False).logits]


def left_padding_counted_on(side: Side) -> list[Tensor]:
    """Without positions they count from 0, padding included."""
    return [side.model(padded(LEFT_BT), attention_mask=LEFT_BT.bool()).logits]


def right_padding(side: Side) -> list[Tensor]:
    return [side.model(padded(RIGHT_BT), attention_mask=RIGHT_BT).logits]


def dynamic(side: Side) -> list[Tensor]:
    return in_chunks(side, side.dynamic_cache())


def dynamic_left(side: Side) -> list[Tensor]:
    return in_chunks(side, side.dynamic_cache(), LEFT_BT, positions(LEFT_BT))


def dynamic_right(side: Side) -> list[Tensor]:
    """The shorter rows' last chunks are padding throughout."""
    return in_chunks(side, side.dynamic_cache(), RIGHT_BT)


def static(side: Side) -> list[Tensor]:
    return in_chunks(side, side.static_cache(25))


def static_masked(side: Side) -> list[Tensor]:
    """The last token fills the cache."""
    return in_chunks(side, side.static_cache(LENGTH), torch.ones_like(IDS_BT))


def static_left(side: Side) -> list[Tensor]:
    return in_chunks(side, side.static_cache(25), LEFT_BT, positions(LEFT_BT))


def static_right(side: Side) -> list[Tensor]:
    return in_chunks(side, side.static_cache(30), RIGHT_BT)


def embeddings(side: Side) -> list[Tensor]:
    x_BTH = side.model.get_input_embeddings()(IDS_BT)
    output = side.model(inputs_embeds=x_BTH)
    return [x_BTH, output.logits, *held(output.past_key_values)]


def hidden_states(side: Side) -> list[Tensor]:
    output = side.model(padded(LEFT_BT), attention_mask=LEFT_BT, output_hidden_states=True)
    return [output.logits, *output.hidden_states]


def kept_logits(side: Side) -> list[Tensor]:
    """The last ones, or those of some positions."""
    return [side.model(IDS_BT, logits_to_keep=kept).logits for kept in (1, 5, 0, torch.tensor([2, 11]))]


def kept_by_row(side: Side) -> list[Tensor]:
    """Each row's own positions, by number or by a mask of all; 5.0.0rc1 knows neither."""
    rows = torch.tensor([[0, 18], [3, 4], [7, 7]])
    chosen = torch.zeros_like(IDS_BT).bool()
    chosen[0, 4:6] = chosen[2, 17] = True
    return [side.model(IDS_BT, logits_to_keep=kept).logits for kept in (rows, chosen)]


def own_mask(side: Side) -> list[Tensor]:
    """A 4-D mask is taken as it is: here everything is seen but the middle."""
    seen = torch.ones(3, 1, LENGTH, LENGTH, dtype=torch.bool)
    seen[..., 6:9] = False
    added = torch.where(seen, 0.0, torch.finfo(side.model.dtype).min).to(side.model.dtype)
    return [side.model(IDS_BT, attention_mask=added, use_cache=False).logits]


def packed(side: Side) -> list[Tensor]:
    """Positions that start again are sequences that do not see each other."""
    starts = torch.arange(LENGTH) - torch.tensor([[0] * 8 + [8] * 11, [0] * 19, [0] * 3 + [3] * 16])
    return [side.model(IDS_BT, position_ids=starts, use_cache=False).logits]


def loss(side: Side) -> list[Tensor]:
    labels_BT = IDS_BT.masked_fill(RIGHT_BT == 0, -100)
    output = side.model(padded(RIGHT_BT), attention_mask=RIGHT_BT, labels=labels_BT)
    return [output.loss, side.model(IDS_BT, labels=labels_BT, num_items_in_batch=11).loss]


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        whole,
        full_mask,
        one_token,
        left_padding,
        left_padding_counted_on,
        right_padding,
        dynamic,
        dynamic_left,
        dynamic_right,
        static,
        static_masked,
        static_left,
        static_right,
        embeddings,
        hidden_states,
        kept_logits,
        kept_by_row,
        own_mask,
        packed,
        loss,
    )
}

GENERATED: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 12, "do_sample": False},
    "greedy without a cache": {"max_new_tokens": 6, "do_sample": False, "use_cache": False},
    "sampled": {"max_new_tokens": 12, "do_sample": True, "temperature": 0.8, "top_p": 0.8, "top_k": 0},
    "repetition": {"max_new_tokens": 12, "do_sample": False, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
}
