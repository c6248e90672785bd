"""The language model against transformers over its options. Bound: every bit, in fp32, bf16 and fp16 alike.

The order of operations is HF's throughout, so there is no rounding to allow for. Rotary widths are 16 and more with
different frequencies: a wrong pairing shows.
"""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.parity import GRID, ROPES, Pairs, Side, assert_same
from support.scenarios import LEFT_BT, LENGTH, RIGHT_BT, SCENARIOS, in_chunks, positions
from torch import Tensor

ANY_MODEL = st.fixed_dictionaries(
    {
        "model_type": st.sampled_from(["glm", "glm4"]),
        "attn": st.sampled_from(["sdpa", "eager"]),
        "dtype": st.sampled_from(["float32", "bfloat16"]),
        "way": st.sampled_from(["file", "state_dict"]),
        "attention_bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "num_key_value_heads": st.sampled_from([1, 2, 4]),
        "hidden_act": st.sampled_from(["silu", "gelu", "relu"]),
    }
)
MASKS: dict[str, Tensor | None] = {
    "none": None,
    "full": torch.ones(3, LENGTH),
    "left": LEFT_BT,
    "right": RIGHT_BT.bool(),
    "holes": (torch.arange(3 * LENGTH).view(3, LENGTH) % 5 != 2).long(),
    "a row of nothing": torch.tensor([[1], [0], [1]]).expand(3, LENGTH),
}
POSITIONS: dict[str, Tensor | None] = {
    "none": None,
    "one row": torch.arange(LENGTH)[None],
    "left": positions(LEFT_BT),
    "apart": torch.arange(LENGTH) + torch.tensor([[0], [3], [40]]),
    "starting again": (torch.arange(LENGTH) % 7).expand(3, -1),
}
SIZES = st.sampled_from([(19,), (9, 7, 1, 1, 1), (1,) * 19, (1, 17, 1), (10, 9)])
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("row", GRID)
def test_every_scenario_gives_hugging_faces_bits(pairs: Pairs, row: str) -> None:
    pair = pairs(**GRID[row])
    for name, scenario in SCENARIOS.items():
        ours, theirs = pair.both(scenario)
        assert_same(ours, theirs, name=name)


@settings(FUZZ, max_examples=12)
@given(options=ANY_MODEL, rope=st.sampled_from(sorted(ROPES)), name=st.sampled_from(sorted(SCENARIOS)))
def test_any_combination_gives_hugging_faces_bits(pairs: Pairs, options: dict[str, Any], rope: str, name: str) -> None:
    ours, theirs = pairs(**options, **ROPES[rope]).both(SCENARIOS[name])
    assert_same(ours, theirs, name=name)


@settings(FUZZ, max_examples=60)
@given(
    row=st.sampled_from(sorted(GRID)),
    mask=st.sampled_from(sorted(MASKS)),
    counted=st.sampled_from(sorted(POSITIONS)),
    slots=st.sampled_from([None, LENGTH, LENGTH + 3]),
    sizes=SIZES,
)
def test_any_call_over_a_cache_gives_hugging_faces_bits(
    pairs: Pairs, row: str, mask: str, counted: str, slots: int | None, sizes: tuple[int, ...]
) -> None:
    """Rows of padding that see nothing included, where a softmax over no slot is whatever HF's is."""

    def ask(side: Side) -> list[Tensor]:
        cache = side.dynamic_cache() if slots is None else side.static_cache(slots)
        return in_chunks(side, cache, MASKS[mask], POSITIONS[counted], sizes)

    assert_same(*pairs(**GRID[row]).both(ask))
