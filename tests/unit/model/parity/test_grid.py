"""The language model against transformers over its options. Bound: every bit, in fp32, bf16 and fp16 alike.

The order of operations is HF's throughout, so there is no rounding to allow for. Rotary widths are 16 and more with
different frequencies: a wrong pairing shows.
"""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.parity import GRID, ROPES, Pairs, assert_same
from support.scenarios import SCENARIOS

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


@pytest.mark.parametrize("row", GRID)
def test_every_scenario_gives_hugging_faces_bits(pairs: Pairs, row: str) -> None:
    pair = pairs(**GRID[row])
    for name, scenario in SCENARIOS.items():
        ours, theirs = pair.both(scenario)
        assert_same(ours, theirs, name=name)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options=ANY_MODEL, rope=st.sampled_from(sorted(ROPES)), name=st.sampled_from(sorted(SCENARIOS)))
def test_any_combination_gives_hugging_faces_bits(pairs: Pairs, options: dict[str, Any], rope: str, name: str) -> None:
    ours, theirs = pairs(**options, **ROPES[rope]).both(SCENARIOS[name])
    assert_same(ours, theirs, name=name)
