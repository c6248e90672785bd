"""Logits are edited as HF's processors do where there is one, and as worked out by hand where there is none."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from glm_cluster.engine.edits import edit
from glm_cluster.engine.past import Draw, Past
from glm_cluster.engine.sampler import sample
from glm_cluster.records import Grammar, SamplingParams

NEVER = float("-inf")
VOCAB = 300


def draw(prompt: Sequence[int] = (), output: Sequence[int] = (), **asked: object) -> Draw:
    return Draw(Past(SamplingParams(max_tokens=99, **asked), [*prompt, *output], len(prompt)))


def logits(rows: int = 1, seed: int = 0, width: int = VOCAB) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3


def edited(row: Sequence[float], **asked: object) -> list[float]:
    return edit(torch.tensor([row]), [draw(**asked)])[0].tolist()


def test_who_asks_for_nothing_pays_nothing() -> None:
    rows = logits(2)
    assert edit(rows, [draw((1,), (2,))] * 2) is rows


def test_the_given_logits_are_left_as_they_are() -> None:
    rows = logits(2)
    before = rows.clone()
    edit(rows, [draw((1,), (2,), presence_penalty=1.0, allowed_token_ids=(3,))] * 2)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_repetition_is_penalised_as_by_hf_over_prompt_and_output(penalty: float) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    rows, prompt, output = logits(), (1, 2, 3, 2, 150), (4, 2, 299, 4)
    wanted = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), rows.clone())
    assert torch.equal(edit(rows, [draw(prompt, output, repetition_penalty=penalty)]), wanted)


def test_bad_words_are_those_of_hf_over_the_output() -> None:
    from transformers import NoBadWordsLogitsProcessor

    words = ((9,), (4, 2), (2, 299, 7), (5, 6), (299, 4, 11))
    for output in [(1,), (4,), (1, 4), (4, 2, 299), (5, 5), (299, 4)]:
        wanted = NoBadWordsLogitsProcessor([list(word) for word in words])(torch.tensor([output]), logits())
        assert torch.equal(edit(logits(), [draw((5, 4), output, bad_words=words)]), wanted)


@pytest.mark.parametrize("num_output", [0, 2, 3, 4])
def test_min_tokens_is_hf_s_min_new_tokens(num_output: int) -> None:
    from transformers import MinNewTokensLengthLogitsProcessor

    prompt, output = (1, 2), tuple(range(10, 10 + num_output))
    processor = MinNewTokensLengthLogitsProcessor(len(prompt), 3, [7, 8], device="cpu")
    wanted = processor(torch.tensor([prompt + output]), logits())
    assert torch.equal(edit(logits(), [draw(prompt, output, min_tokens=3, stop_token_ids=(7, 8))]), wanted)


def test_output_penalties_are_openai_s() -> None:
    """Less alpha_frequency for each time, less alpha_presence once; the prompt does not count."""
    asked = {"prompt": (0, 0, 3), "output": (1, 2, 1, 1), "frequency_penalty": 0.5, "presence_penalty": 0.25}
    assert edited([1.0, 1.0, -1.0, 1.0], **asked) == [1.0, 1.0 - 3 * 0.5 - 0.25, -1.0 - 0.5 - 0.25, 1.0]


def test_bias_is_added_and_cannot_undo_a_mask() -> None:
    asked = {"logit_bias": ((0, 2.5), (2, -100.0), (3, 100.0)), "allowed_token_ids": (0, 1, 2)}
    assert edited([1.0, 1.0, 1.0, 1.0], **asked) == [3.5, 1.0, -99.0, NEVER]


def test_only_the_allowed_ids_remain() -> None:
    assert edited([1.0, 2.0, 3.0, 4.0], allowed_token_ids=(1, 2)) == [NEVER, 2.0, 3.0, NEVER]
    assert edited([1.0, 2.0], allowed_token_ids=()) == [NEVER, NEVER]


def test_bias_comes_before_the_penalties_and_repetition_before_the_others() -> None:
    asked = {"output": (0,), "repetition_penalty": 2.0, "frequency_penalty": 0.5, "presence_penalty": 0.25}
    assert edited([-1.0, 1.0], logit_bias=((0, 3.0),), **asked) == [(-1.0 + 3.0) / 2.0 - 0.5 - 0.25, 1.0]


class Even:
    """Lets even ids come after an even number of tokens, odd ones after an odd number."""

    num_taken = 0

    def take(self, tokens: Sequence[int]) -> None:
        self.num_taken += len(tokens)

    def allowed(self) -> NDArray[np.int32]:
        bits = [sum(1 << bit for bit in range(32) if bit % 2 == self.num_taken % 2) for _ in range(-(-VOCAB // 32))]
        return np.array(bits, dtype=np.uint32).view(np.int32)


def test_a_constraint_masks_what_its_bits_do_not_name() -> None:
    past = Past(SamplingParams(max_tokens=9, grammar=Grammar("lark", "")), [5, 6, 7], 2, Even())
    rows = edit(logits(2).bfloat16(), [Draw(past), Draw(past, (8,))])
    ids = torch.arange(VOCAB)
    for row, first, own in zip(rows, (1, 0), logits(2).bfloat16().float(), strict=True):
        assert torch.equal(row, own.masked_fill(ids % 2 != first, NEVER))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_everything_masked_gives_id_0(temperature: float) -> None:
    draws = [draw(allowed_token_ids=(), temperature=temperature), draw(temperature=temperature)]
    params = [one.sampling for one in draws]
    tokens = sample(edit(logits(2), draws), params, [0, 1])
    assert tokens == [0, sample(logits(2)[1:], params[1:], [1])[0]]


def any_draw(rng: random.Random) -> Draw:
    prompt, output, drafts = ([rng.randrange(VOCAB) for _ in range(rng.randrange(most))] for most in (40, 20, 4))
    asked = {
        "min_tokens": rng.randrange(30),
        "presence_penalty": rng.uniform(-2, 2),
        "frequency_penalty": rng.uniform(-2, 2),
        "repetition_penalty": rng.uniform(0.5, 2),
        "logit_bias": tuple((token, rng.uniform(-9, 9)) for token in rng.sample(range(VOCAB), 5)),
        "allowed_token_ids": tuple(rng.sample(range(VOCAB), 50)),
        "bad_words": tuple((*output[len(output) - n :], rng.randrange(VOCAB)) for n in range(3)),
    }
    chosen = {name: value for name, value in asked.items() if rng.random() < 0.4}
    sampling = SamplingParams(max_tokens=99, stop_token_ids=(1, 2), **chosen)
    return Draw(Past(sampling, prompt + output, len(prompt)), tuple(drafts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_a_row_does_not_see_its_neighbours(seed: int, dtype: torch.dtype) -> None:
    rng, rows = random.Random(seed), logits(30, seed).to(dtype)
    draws = [draw((1,), (2,)), *(any_draw(rng) for _ in rows[1:])]
    together = edit(rows, draws)
    for row, one, ours in zip(rows, draws, together, strict=True):
        assert torch.equal(ours.float(), edit(row.unsqueeze(0), [one])[0].float())
        written_out = Draw(Past(one.sampling, [*one.past.tokens, *one.drafts], one.past.num_prompt))
        assert torch.equal(ours.float(), edit(row.unsqueeze(0), [written_out])[0].float())
