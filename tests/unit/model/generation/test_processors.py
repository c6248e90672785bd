"""Each processor against HF's class of the same purpose: the scores are bit-equal."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig as HfConfig
from transformers.generation import logits_process as hf

from glm_cluster.model.generation import processors, warpers
from glm_cluster.model.generation.config import GenerationConfig
from glm_cluster.model.generation.processors import Prompt, bad_words, merged, processors_for

VOCAB = 97
EOS = (1, 5)
PROMPT_BT = torch.tensor([[0, 0, 4, 9, 4, 9, 7], [3, 3, 5, 3, 3, 8, 3], [2, 6, 11, 2, 6, 12, 2]])
STARTS_B = torch.tensor([2, 0, 0])
BIASES = [[[7], -3.0], [[4, 9], 2.5], [[9, 4, 9], 1.25], [[12, 2], -float("inf")], [[9], 0.5], [[6, 12, 2], -2.0]]


def allow_even(row: int, ids_T: Tensor) -> list[int]:
    return list(range(row, VOCAB, 2))


def random_scores(seed: int) -> Tensor:
    """Wide enough to make tails, with ties and removed tokens among them."""
    scores_BV = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(seed)) * 4
    scores_BV[0, 10:20] = scores_BV[0, 10]
    scores_BV[1, 30:60] = -float("inf")
    return scores_BV


def grown(seed: int, length: int = 20) -> Tensor:
    """The prompt, a continuation from few ids so that n-grams repeat, and three ids of the prompt again."""
    more = torch.randint(0, 14, (3, length - PROMPT_BT.shape[1] - 3), generator=torch.Generator().manual_seed(seed))
    return torch.cat([PROMPT_BT, more, PROMPT_BT[:, 1:4]], dim=1)


PAIRS: dict[str, tuple[Callable[..., Tensor], Callable[..., Any]]] = {
    "repetition": (
        processors.RepetitionPenalty(1.7),
        lambda: hf.RepetitionPenaltyLogitsProcessor(1.7),
    ),
    "repetition after padding": (
        processors.RepetitionPenalty(0.6, STARTS_B),
        lambda: hf.RepetitionPenaltyLogitsProcessor(0.6, STARTS_B),
    ),
    "prompt bonus": (
        processors.PromptBonus(1.7, PROMPT_BT),
        lambda: hf.EncoderRepetitionPenaltyLogitsProcessor(1.7, PROMPT_BT),
    ),
    **{
        f"no repeated {n}-gram": (processors.NoRepeatNgram(n), lambda n=n: hf.NoRepeatNGramLogitsProcessor(n))
        for n in (1, 2, 3, 30)
    },
    **{
        f"no {n}-gram of the prompt": (
            processors.NoPromptNgram(n, PROMPT_BT),
            lambda n=n: hf.EncoderNoRepeatNGramLogitsProcessor(n, PROMPT_BT),
        )
        for n in (1, 2, 3, 30)
    },
    "sequence bias": (processors.SequenceBias(BIASES), lambda: hf.SequenceBiasLogitsProcessor(BIASES)),
    "bad words": (
        bad_words([[3], [4, 9], [1], [9, 5], [9, 4, 2]], EOS),
        lambda: hf.NoBadWordsLogitsProcessor([[3], [4, 9], [1], [9, 5], [9, 4, 2]], list(EOS)),
    ),
    "bad words, ends only": (bad_words([[1]], EOS), lambda: hf.NoBadWordsLogitsProcessor([[1]], list(EOS))),
    "min length": (processors.MinLength(12, EOS), lambda: hf.MinLengthLogitsProcessor(12, list(EOS))),
    "min new tokens": (
        processors.MinLength(PROMPT_BT.shape[1] + 6, EOS),
        lambda: hf.MinNewTokensLengthLogitsProcessor(PROMPT_BT.shape[1], 6, list(EOS)),
    ),
    "allowed": (
        processors.AllowedOnly(allow_even),
        lambda: hf.PrefixConstrainedLogitsProcessor(allow_even, 1),
    ),
    "forced first": (processors.ForcedAt(1, (8,)), lambda: hf.ForcedBOSTokenLogitsProcessor(8)),
    "forced last": (processors.ForcedAt(19, EOS), lambda: hf.ForcedEOSTokenLogitsProcessor(20, list(EOS))),
    "finite": (processors.Finite(), hf.InfNanRemoveLogitsProcessor),
    "growing end": (
        processors.GrowingEos(9, 1.3, EOS),
        lambda: hf.ExponentialDecayLengthPenalty((2, 1.3), list(EOS), PROMPT_BT.shape[1]),
    ),
    "suppressed": (processors.Suppress((2, 60)), lambda: hf.SuppressTokensLogitsProcessor([2, 60])),
    "suppressed first": (
        processors.Suppress((2, 60), at=7),
        lambda: hf.SuppressTokensAtBeginLogitsProcessor([2, 60], 7),
    ),
    **{
        f"temperature {t}": (warpers.Temperature(t), lambda t=t: hf.TemperatureLogitsWarper(t)) for t in (0.1, 0.7, 3.0)
    },
    **{f"top_k {k}": (warpers.TopK(k), lambda k=k: hf.TopKLogitsWarper(k)) for k in (1, 5, 12, 500)},
    **{f"top_p {p}": (warpers.TopP(p), lambda p=p: hf.TopPLogitsWarper(p)) for p in (0.0, 0.3, 0.9, 0.999)},
    **{f"min_p {p}": (warpers.MinP(p), lambda p=p: hf.MinPLogitsWarper(p)) for p in (0.0, 0.05, 0.5, 1.0)},
    **{f"top_h {h}": (warpers.TopH(h), lambda h=h: hf.TopHLogitsWarper(h)) for h in (0.1, 0.5, 1.0)},
    **{f"typical_p {p}": (warpers.TypicalP(p), lambda p=p: hf.TypicalLogitsWarper(p)) for p in (0.1, 0.6, 0.95)},
    **{f"epsilon {e}": (warpers.EpsilonCutoff(e), lambda e=e: hf.EpsilonLogitsWarper(e)) for e in (0.001, 0.1, 0.9)},
    **{f"eta {e}": (warpers.EtaCutoff(e), lambda e=e: hf.EtaLogitsWarper(e)) for e in (0.001, 0.1, 0.9)},
    "normalize": (warpers.Normalize(), hf.LogitNormalization),
}
ACTS = set(PAIRS) - {
    "no repeated 30-gram",
    "no 30-gram of the prompt",
    "bad words, ends only",
    "min_p 0.0",
    "top_k 500",
}


@pytest.mark.parametrize("name", PAIRS)
def test_scores_are_bit_equal_to_hf_s(name: str):
    ours, make_theirs = PAIRS[name]
    theirs, acted = make_theirs(), False
    for seed, ids_BT in enumerate([PROMPT_BT[:, :1], PROMPT_BT, grown(1, 12), grown(2, 19), grown(3)]):
        if "padding" in name and ids_BT.shape[1] == 1:
            continue
        scores_BV = random_scores(seed)
        if name == "finite":
            scores_BV[2, :2] = torch.tensor([float("nan"), float("inf")])
        before_BV = scores_BV.clone()
        got_BV = ours(ids_BT, scores_BV)
        expected_BV = theirs(ids_BT, scores_BV.clone())
        assert torch.equal(got_BV, expected_BV), (name, seed)
        assert torch.equal(scores_BV.nan_to_num(), before_BV.nan_to_num()), "the given scores were changed in place"
        acted = acted or not torch.equal(got_BV, before_BV)
    assert acted or name not in ACTS, "this case shows nothing"


def test_ids_beyond_the_head_s_vocabulary_are_passed_over():
    ids_BT = torch.tensor([[2, 200, 3, 200]])
    scores_BV = random_scores(0)[:1]
    for ours, theirs in (
        (processors.RepetitionPenalty(1.5), hf.RepetitionPenaltyLogitsProcessor(1.5)),
        (processors.NoRepeatNgram(2), hf.NoRepeatNGramLogitsProcessor(2)),
        (processors.NoRepeatNgram(1), hf.NoRepeatNGramLogitsProcessor(1)),
    ):
        assert torch.equal(ours(ids_BT, scores_BV), theirs(ids_BT, scores_BV))


def test_allowed_tokens_win_over_a_rule_that_removed_them_all():
    scores_BV = random_scores(0)
    scores_BV[1, [4, 6]] = -float("inf")

    def allow(row: int, ids_T: Tensor) -> list[int]:
        return [4, 6]

    got = processors.AllowedOnly(allow)(PROMPT_BT, scores_BV)
    assert torch.equal(got, hf.PrefixConstrainedLogitsProcessor(allow, 1)(PROMPT_BT, scores_BV))
    assert got[1, 4] == 0


@pytest.mark.parametrize("without", ["remove_invalid_values", "exponential_decay_length_penalty"])
def test_the_order_is_hf_s(without: str):
    """Every setting at once, but the two that make infinities of each other's scores."""
    settings: dict[str, Any] = {
        "sequence_bias": BIASES,
        "encoder_repetition_penalty": 1.3,
        "repetition_penalty": 1.7,
        "no_repeat_ngram_size": 3,
        "encoder_no_repeat_ngram_size": 2,
        "bad_words_ids": [[3], [9, 13]],
        "min_new_tokens": 3,
        "forced_bos_token_id": 4,
        "forced_eos_token_id": [1],
        "remove_invalid_values": True,
        "exponential_decay_length_penalty": (1, 1.2),
        "suppress_tokens": [2],
        "begin_suppress_tokens": [8],
        "do_sample": True,
        "temperature": 1.4,
        "top_h": 0.95,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.01,
        "typical_p": 0.9,
        "epsilon_cutoff": 0.002,
        "eta_cutoff": 0.01,
        "renormalize_logits": True,
        "eos_token_id": list(EOS),
    }
    del settings[without]
    length = PROMPT_BT.shape[1]
    mask_BT = (torch.arange(length) >= STARTS_B[:, None]).long()
    prompt = Prompt(ids_BT=PROMPT_BT, mask_BT=mask_BT, min_length=length + 3, max_length=20)
    ours = processors_for(
        GenerationConfig(**settings), prompt, custom=[halve], allowed_tokens=lambda row, ids_T: range(90)
    )
    theirs = hf_processors(HfConfig(**settings, max_length=20), mask_BT, custom=[halve])
    assert [SAME_AS[name_of(each)] for each in theirs] == [name_of(each) for each in ours]
    for seed, width in ((1, length), (2, 12), (3, 19)):
        ids_BT, scores_BV = grown(seed, 19)[:, :width], random_scores(seed)
        expected_BV = theirs(ids_BT, scores_BV.clone())
        got_BV = scores_BV
        for process in ours:
            got_BV = process(ids_BT, got_BV)
        assert torch.equal(got_BV, expected_BV)


SAME_AS = {
    "SequenceBiasLogitsProcessor": "SequenceBias",
    "EncoderRepetitionPenaltyLogitsProcessor": "PromptBonus",
    "RepetitionPenaltyLogitsProcessor": "RepetitionPenalty",
    "NoRepeatNGramLogitsProcessor": "NoRepeatNgram",
    "EncoderNoRepeatNGramLogitsProcessor": "NoPromptNgram",
    "NoBadWordsLogitsProcessor": "SequenceBias",
    "MinNewTokensLengthLogitsProcessor": "MinLength",
    "PrefixConstrainedLogitsProcessor": "AllowedOnly",
    "ForcedBOSTokenLogitsProcessor": "ForcedAt",
    "ForcedEOSTokenLogitsProcessor": "ForcedAt",
    "InfNanRemoveLogitsProcessor": "Finite",
    "ExponentialDecayLengthPenalty": "GrowingEos",
    "SuppressTokensLogitsProcessor": "Suppress",
    "SuppressTokensAtBeginLogitsProcessor": "Suppress",
    "halve": "halve",
    "TemperatureLogitsWarper": "Temperature",
    "TopHLogitsWarper": "TopH",
    "TopKLogitsWarper": "TopK",
    "TopPLogitsWarper": "TopP",
    "MinPLogitsWarper": "MinP",
    "TypicalLogitsWarper": "TypicalP",
    "EpsilonLogitsWarper": "EpsilonCutoff",
    "EtaLogitsWarper": "EtaCutoff",
    "LogitNormalization": "Normalize",
}


def name_of(process: Any) -> str:
    return getattr(process, "__name__", type(process).__name__)


def halve(ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
    return scores_BV.clamp(min=-1e30) / 2 + 1


def hf_processors(config: HfConfig, mask_BT: Tensor, custom: list[Any]) -> Any:
    """HF's own assembly, on a model that is only its configuration."""
    from transformers import GlmConfig, GlmForCausalLM

    with torch.device("meta"):
        model = GlmForCausalLM(GlmConfig(num_hidden_layers=1, vocab_size=VOCAB, pad_token_id=0))
    config = HfConfig(**{**HfConfig._get_default_generation_params(), **_set(config)})
    config._eos_token_tensor = torch.tensor(config.eos_token_id)
    return model._get_logits_processor(
        config,
        input_ids_seq_length=PROMPT_BT.shape[1],
        encoder_input_ids=PROMPT_BT,
        prefix_allowed_tokens_fn=lambda row, ids_T: range(90),
        logits_processor=custom,
        device="cpu",
        model_kwargs={"attention_mask": mask_BT},
    )


def _set(config: HfConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if value is not None}


def test_neutral_settings_build_nothing():
    prompt = Prompt(ids_BT=PROMPT_BT, max_length=20)
    neutral = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        typical_p=1.0,
        epsilon_cutoff=0.0,
        eta_cutoff=0.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
    )
    assert processors_for(neutral, prompt) == []


def test_warpers_are_for_sampling_only():
    prompt = Prompt(ids_BT=PROMPT_BT, max_length=20)
    assert processors_for(GenerationConfig(temperature=0.5, top_k=3, min_p=0.5), prompt) == []


def test_the_caller_s_own_stands_in_for_a_default_of_its_type_and_else_comes_last():
    default, other = processors.MinLength(3, EOS), processors.Suppress((1,))
    mine = processors.MinLength(9, EOS)
    assert merged([default, other], [halve, mine]) == [mine, other, halve]


def test_begin_suppression_waits_for_a_forced_first_token():
    config = GenerationConfig(begin_suppress_tokens=[3], forced_bos_token_id=2)
    *_, suppress = processors_for(config, Prompt(ids_BT=PROMPT_BT[:, :1], max_length=20))
    assert suppress == processors.Suppress((3,), at=2)
    *_, suppress = processors_for(config, Prompt(ids_BT=PROMPT_BT, max_length=20))
    assert suppress == processors.Suppress((3,), at=PROMPT_BT.shape[1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: warpers.Temperature(0.0),
        lambda: warpers.Temperature(-1.0),
        lambda: warpers.TopK(-1),
        lambda: warpers.TopP(1.5),
        lambda: warpers.TopP(-0.1),
        lambda: warpers.MinP(2.0),
        lambda: warpers.TopH(0.0),
        lambda: warpers.TypicalP(1.0),
        lambda: warpers.EpsilonCutoff(1.0),
        lambda: warpers.EtaCutoff(0.0),
        lambda: processors.RepetitionPenalty(0.0),
        lambda: processors.PromptBonus(-1.0, PROMPT_BT),
        lambda: processors.NoRepeatNgram(-2),
        lambda: processors.NoPromptNgram(-2, PROMPT_BT),
        lambda: processors.SequenceBias([[[-3], 1.0]]),
        lambda: processors.SequenceBias([[[VOCAB], 1.0]])(PROMPT_BT, random_scores(0)),
        lambda: processors.AllowedOnly(lambda row, ids: [])(PROMPT_BT, random_scores(0)),
        lambda: processors_for(
            GenerationConfig(exponential_decay_length_penalty=[1, 1.1]), Prompt(ids_BT=PROMPT_BT, max_length=20)
        ),
    ],
)
def test_impossible_values_are_refused(make: Callable[[], object]):
    with pytest.raises(ValueError, match=r"must be|vocabulary has|must allow|set eos_token_id"):
        make()
