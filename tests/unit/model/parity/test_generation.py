"""`generate` of the two models on the same weights. Bound: the same ids, and every bit of the scores.

What `generate` does with logits is compared in `../test_generation`; here the models underneath differ too.
"""

from typing import Any

import pytest
import torch
from support.parity import Pairs, Side, assert_same
from support.scenarios import GENERATED, IDS_BT, LEFT_BT, padded
from torch import Tensor

MODELS: dict[str, dict[str, Any]] = {
    "glm": {},
    "bf16, eager": {"dtype": "bfloat16", "attn": "eager"},
    "glm4, tied": {"model_type": "glm4", "tie_word_embeddings": True},
}


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize("row", MODELS)
def test_the_same_continuation(pairs: Pairs, row: str, name: str) -> None:
    def ask(side: Side) -> list[Tensor]:
        torch.manual_seed(3)
        output = side.model.generate(
            padded(LEFT_BT),
            attention_mask=LEFT_BT,
            return_dict_in_generate=True,
            output_scores=True,
            **GENERATED[name],
        )
        return [output.sequences, *output.scores]

    assert_same(*pairs(**MODELS[row]).both(ask), name=name)


def test_greedy_from_one_unpadded_prompt(pairs: Pairs) -> None:
    def ask(side: Side) -> list[Tensor]:
        return [side.model.generate(IDS_BT[:1], max_new_tokens=24, do_sample=False, eos_token_id=None)]

    ours, theirs = pairs().both(ask)
    assert ours[0].shape == (1, 19 + 24)
    assert_same(ours, theirs)
