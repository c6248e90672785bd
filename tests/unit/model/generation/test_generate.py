"""Our `generate` against HF's, on HF's own model: the same ids, scores and logits, bit for bit."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import TINY, oracle
from torch import Tensor

from glm_cluster.errors import ConfigError
from glm_cluster.model.generation import generate as module
from glm_cluster.model.generation.config import GenerationConfig
from glm_cluster.model.generation.generate import GenerateOutput, generate

EOS = [1, 40, 77]
PROMPT_BT = torch.tensor([[0, 0, 0, 17, 90, 201, 17], [5, 250, 33, 8, 5, 250, 33], [0, 12, 60, 12, 61, 12, 60]])
MASK_BT = (PROMPT_BT != 0).long()
LENGTH = PROMPT_BT.shape[1]


class HfModel:
    """HF's model behind the few attributes generation asks of one; remembers its inputs."""

    def __init__(self, hf: Any, directory: Path) -> None:
        self.hf, self.config, self.device = hf, hf.config, hf.device
        self.generation_config = GenerationConfig.from_directory(directory, hf.config)
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **inputs: Any) -> Any:
        self.calls.append(inputs)
        return self.hf(**inputs, return_dict=True)


@pytest.fixture(scope="module")
def hf_model(checkpoint: Callable[..., Path]) -> HfModel:
    directory = checkpoint(num_hidden_layers=2)
    return HfModel(oracle(directory), directory)


@pytest.fixture
def model(hf_model: HfModel) -> HfModel:
    """With its own settings and memory; the weights are shared."""
    fresh = HfModel.__new__(HfModel)
    fresh.__dict__.update(hf_model.__dict__, calls=[])
    return fresh


def assert_same(
    model: HfModel, ids_BT: Tensor | None = PROMPT_BT, *, seed: int = 3, **arguments: Any
) -> GenerateOutput:
    """Both `generate`s with one seed: equal ids, scores and logits, and the generator left in the same state."""
    recorded = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    torch.manual_seed(seed)
    theirs = model.hf.generate(ids_BT, **recorded, **arguments)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    ours = generate(model, ids_BT, **recorded, **arguments)
    assert isinstance(ours, GenerateOutput)
    assert torch.equal(torch.get_rng_state(), state)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert ours.sequences.dtype == theirs.sequences.dtype
    for mine, other in ((ours.scores, theirs.scores), (ours.logits, theirs.logits)):
        assert mine is not None
        assert len(mine) == len(other)
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
    return ours


GRID: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, one eos": {"eos_token_id": 1},
    "greedy, no eos": {"eos_token_id": None},
    "greedy, pad in eos": {"pad_token_id": 1},
    "greedy, no pad": {"pad_token_id": None},
    "no cache": {"use_cache": False},
    "sampled": {"do_sample": True},
    "sampled, no cache": {"do_sample": True, "use_cache": False},
    "hot": {"do_sample": True, "temperature": 5.0, "top_k": 0},
    "cold": {"do_sample": True, "temperature": 0.3},
    "top_k none": {"do_sample": True, "top_k": None, "temperature": 4.0},
    "top_k 1": {"do_sample": True, "top_k": 1},
    "top_p": {"do_sample": True, "top_p": 0.7, "top_k": 0, "temperature": 3.0},
    "min_p": {"do_sample": True, "min_p": 0.1, "temperature": 3.0},
    "typical_p": {"do_sample": True, "typical_p": 0.6, "temperature": 3.0},
    "top_h": {"do_sample": True, "top_h": 0.5, "temperature": 3.0},
    "epsilon_cutoff": {"do_sample": True, "epsilon_cutoff": 0.02, "top_k": 0, "temperature": 3.0},
    "eta_cutoff": {"do_sample": True, "eta_cutoff": 0.05, "top_k": 0, "temperature": 3.0},
    "all warpers": {
        "do_sample": True,
        "temperature": 4.0,
        "top_k": 60,
        "top_p": 0.95,
        "min_p": 0.02,
        "typical_p": 0.9,
        "epsilon_cutoff": 0.003,
        "eta_cutoff": 0.003,
        "renormalize_logits": True,
    },
    "repetition": {"repetition_penalty": 1.9},
    "prompt bonus": {"encoder_repetition_penalty": 3.0},
    "no repeated bigram": {"no_repeat_ngram_size": 2},
    "no bigram of the prompt": {"encoder_no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[5], [33, 8], [1]]},
    "bias": {"sequence_bias": [[[17], 4.0], [[33, 8], 6.0]]},
    "min_length": {"min_length": LENGTH + 4},
    "min_new_tokens": {"min_new_tokens": 6},
    "suppressed": {"suppress_tokens": [5, 6], "begin_suppress_tokens": [7, 8, 9]},
    "forced end": {"forced_eos_token_id": 77},
    "decay": {"exponential_decay_length_penalty": (2, 1.4)},
    "finite, normalized": {"remove_invalid_values": True, "renormalize_logits": True, "suppress_tokens": [4]},
    "penalties and sampling": {
        "do_sample": True,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[5]],
        "min_new_tokens": 3,
        "temperature": 2.0,
        "top_p": 0.9,
    },
    "three each": {"do_sample": True, "num_return_sequences": 3, "temperature": 3.0, "repetition_penalty": 1.3},
}


@pytest.mark.parametrize("name", GRID)
def test_a_left_padded_batch_gives_hf_s_ids_and_scores(name: str, model: HfModel):
    settings = {"eos_token_id": EOS, "max_new_tokens": 9, **GRID[name]}
    assert_same(model, attention_mask=MASK_BT, **settings)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_single_prompt_gives_hf_s_ids(seed: int, dtype: str, checkpoint: Callable[..., Path]):
    directory = checkpoint(num_hidden_layers=2)
    model = HfModel(oracle(directory, dtype), directory)
    out = assert_same(model, PROMPT_BT[1:2], seed=seed, do_sample=True, temperature=2.0, max_new_tokens=16)
    assert out.scores is not None
    assert out.scores[0].dtype == torch.float32


def test_different_seeds_give_different_ids(model: HfModel):
    outs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        outs.append(generate(model, PROMPT_BT, do_sample=True, top_k=0, temperature=3.0, max_new_tokens=9))
    assert not torch.equal(*outs)


def test_ended_rows_are_filled_with_the_padding_id(model: HfModel):
    first = int(generate(model, PROMPT_BT, attention_mask=MASK_BT, max_new_tokens=1)[1, -1])
    out = generate(model, PROMPT_BT, attention_mask=MASK_BT, eos_token_id=[first], pad_token_id=99, max_new_tokens=5)
    assert out[1, LENGTH:].tolist() == [first, 99, 99, 99, 99]
    assert 99 not in out[0, LENGTH:].tolist()


def test_generation_stops_when_every_row_has_ended(model: HfModel):
    firsts = generate(model, PROMPT_BT, attention_mask=MASK_BT, max_new_tokens=1)[:, -1].tolist()
    out = generate(model, PROMPT_BT, attention_mask=MASK_BT, eos_token_id=firsts, max_new_tokens=50)
    assert out.shape[1] == LENGTH + 1


def test_padding_changes_nothing_for_a_row(model: HfModel):
    alone = generate(model, PROMPT_BT[:1, 3:], max_new_tokens=12, eos_token_id=None)
    batched = generate(model, PROMPT_BT, attention_mask=MASK_BT, max_new_tokens=12, eos_token_id=None)
    assert batched[0, LENGTH:].tolist() == alone[0, LENGTH - 3 :].tolist()


@pytest.mark.parametrize("pad", [0, 1, None])
def test_a_mask_is_inferred_from_the_padding_as_hf_does(pad: int | None, model: HfModel):
    assert_same(model, pad_token_id=pad, eos_token_id=EOS, max_new_tokens=6)
    expected = MASK_BT if pad == 0 else None
    got = model.calls[0].get("attention_mask")
    assert (got is None) if expected is None else torch.equal(got, expected)


def test_each_step_extends_mask_and_positions_and_feeds_one_token(model: HfModel):
    generate(model, PROMPT_BT, attention_mask=MASK_BT, max_new_tokens=3, eos_token_id=None)
    assert [call["input_ids"].shape[1] for call in model.calls] == [LENGTH, 1, 1]
    assert [call["attention_mask"].shape[1] for call in model.calls] == [LENGTH, LENGTH + 1, LENGTH + 2]
    assert model.calls[0]["position_ids"][0].tolist() == [0, 0, 0, 0, 1, 2, 3]
    assert model.calls[2]["position_ids"][:, 0].tolist() == [5, 8, 7]
    assert all(call["logits_to_keep"] == 1 for call in model.calls)


def test_a_mask_without_padding_is_dropped_so_that_the_kernels_are_hf_s(model: HfModel):
    assert_same(model, PROMPT_BT[1:2], attention_mask=torch.ones(1, LENGTH), max_new_tokens=4)
    assert all("attention_mask" not in call for call in model.calls)


def test_the_caller_s_positions_are_continued(model: HfModel):
    positions_BT = torch.arange(LENGTH).expand(3, -1) + 4
    assert_same(model, attention_mask=MASK_BT, position_ids=positions_BT, max_new_tokens=4, eos_token_id=None)
    assert model.calls[-1]["position_ids"].tolist() == [[LENGTH + 6]] * 3


@pytest.mark.parametrize("whole", [True, False])
def test_a_cache_is_continued_from_the_whole_prompt_or_from_its_new_tokens(whole: bool, model: HfModel):
    first = {"attention_mask": MASK_BT, "max_new_tokens": 4, "eos_token_id": None, "return_dict_in_generate": True}
    more = torch.tensor([[21, 22], [23, 24], [25, 26]])
    results = []
    for run in (model.hf.generate, lambda ids, **kw: generate(model, ids, **kw)):
        turn = run(PROMPT_BT, **first)
        ids_BT = torch.cat([turn.sequences, more], dim=1)
        mask_BT = torch.cat([MASK_BT, torch.ones(3, 6, dtype=torch.long)], dim=1)
        unseen_BT = ids_BT if whole else ids_BT[:, turn.past_key_values.get_seq_length() :]
        again = run(
            unseen_BT, attention_mask=mask_BT, past_key_values=turn.past_key_values, max_new_tokens=5, eos_token_id=None
        )
        results.append(again.tolist())
    assert results[0] == results[1]
    assert [call["input_ids"].shape[1] for call in model.calls] == [LENGTH, 1, 1, 1, 3, 1, 1, 1, 1]


def test_a_cache_that_already_holds_the_prompt_is_refused(model: HfModel):
    first = generate(model, PROMPT_BT[1:2], max_new_tokens=4, eos_token_id=None, return_dict_in_generate=True)
    assert isinstance(first, GenerateOutput)
    with pytest.raises(ValueError, match="past_key_values holds 10 tokens and the prompt 7"):
        generate(model, PROMPT_BT[1:2], past_key_values=first.past_key_values, max_new_tokens=4)


@pytest.mark.parametrize("length", [{"max_new_tokens": 6}, {"max_length": LENGTH + 5}, {}])
def test_embeddings_stand_in_for_the_prompt(length: dict[str, int], model: HfModel):
    embeds = model.hf.get_input_embeddings()(PROMPT_BT)
    settings = {"attention_mask": MASK_BT, "eos_token_id": None, "min_length": 3, **length}
    out = assert_same(model, None, inputs_embeds=embeds, **settings)
    plain = generate(model, PROMPT_BT, **settings)
    assert out.sequences.tolist() == plain[:, LENGTH:].tolist()
    assert_same(model, PROMPT_BT, inputs_embeds=embeds, **settings)


@pytest.mark.parametrize("mask", [None, torch.ones(2, 1, dtype=torch.long)])
def test_without_a_prompt_generation_starts_from_bos(mask: Tensor | None, model: HfModel):
    assert_same(model, None, attention_mask=mask, bos_token_id=9, max_new_tokens=4)


def test_a_first_token_can_be_forced(model: HfModel):
    out = assert_same(model, PROMPT_BT[:, 6:], forced_bos_token_id=50, begin_suppress_tokens=[60], max_new_tokens=4)
    assert out.sequences[:, 1].tolist() == [50, 50, 50]


def test_inputs_and_input_ids_are_one_argument(model: HfModel):
    kwargs = {"max_new_tokens": 3, "attention_mask": MASK_BT}
    assert torch.equal(generate(model, PROMPT_BT, **kwargs), generate(model, input_ids=PROMPT_BT, **kwargs))
    with pytest.raises(ValueError, match="two names of one argument"):
        generate(model, PROMPT_BT, input_ids=PROMPT_BT)


class TestLengths:
    def test_by_default_twenty_new_tokens_and_a_warning(self, model: HfModel):
        with pytest.warns(UserWarning, match="stopping at 27 tokens"):
            out = assert_same(model, attention_mask=MASK_BT, eos_token_id=None)
        assert out.sequences.shape[1] == LENGTH + 20

    def test_by_default_the_positions_are_not_exceeded(self, model: HfModel):
        ids_BT = torch.randint(2, 300, (1, TINY["max_position_embeddings"] - 3))
        out = assert_same(model, ids_BT, eos_token_id=None)
        assert out.sequences.shape[1] == TINY["max_position_embeddings"]

    def test_max_length_counts_the_prompt(self, model: HfModel):
        out = assert_same(model, attention_mask=MASK_BT, max_length=LENGTH + 2, eos_token_id=None)
        assert out.sequences.shape[1] == LENGTH + 2

    def test_the_model_s_max_length_counts_the_prompt_too(self, model: HfModel):
        model.generation_config = GenerationConfig(max_length=LENGTH + 3)
        assert generate(model, PROMPT_BT).shape[1] == LENGTH + 3

    def test_max_new_tokens_wins_with_a_warning(self, model: HfModel, caplog: pytest.LogCaptureFixture):
        out = assert_same(model, attention_mask=MASK_BT, max_length=100, max_new_tokens=2, eos_token_id=None)
        assert out.sequences.shape[1] == LENGTH + 2
        assert "max_new_tokens decides" in caplog.text

    def test_min_new_tokens_wins_with_a_warning(self, model: HfModel, caplog: pytest.LogCaptureFixture):
        assert_same(model, attention_mask=MASK_BT, min_length=99, min_new_tokens=2, max_new_tokens=5, eos_token_id=EOS)
        assert "min_new_tokens decides" in caplog.text

    def test_a_minimum_above_the_maximum_is_a_warning(self, model: HfModel):
        with pytest.warns(UserWarning, match="above the maximum"):
            assert_same(model, attention_mask=MASK_BT, min_new_tokens=9, max_new_tokens=3, eos_token_id=EOS)

    @pytest.mark.parametrize("length", [LENGTH, 3])
    def test_a_prompt_of_max_length_is_refused(self, length: int, model: HfModel):
        with pytest.raises(ValueError, match=f"prompt has 7 tokens and max_length is {length}"):
            generate(model, PROMPT_BT, max_length=length)

    def test_max_time_ends_after_the_token_under_way(self, model: HfModel):
        assert generate(model, PROMPT_BT, max_time=-1.0, max_new_tokens=9, eos_token_id=None).shape[1] == LENGTH + 1


class TestSettings:
    def test_overrides_then_the_given_object_then_the_model_then_hf(self, model: HfModel, monkeypatch):
        seen: list[GenerationConfig] = []
        monkeypatch.setattr(module, "processors_for", lambda config, *_, **__: seen.append(config) or [])
        model.generation_config = GenerationConfig(top_k=1, temperature=0.1, top_p=0.1, do_sample=True)
        generate(model, PROMPT_BT, GenerationConfig(top_k=2, temperature=0.2, max_new_tokens=1), top_k=3)
        (config,) = seen
        assert (config.top_k, config.temperature, config.top_p, config.typical_p) == (3, 0.2, 0.1, 1.0)

    def test_an_override_of_none_unsets_what_the_model_set(self, model: HfModel):
        model.generation_config = GenerationConfig(eos_token_id=list(range(301)), pad_token_id=0)
        assert generate(model, PROMPT_BT, max_new_tokens=4).shape[1] == LENGTH + 1
        assert generate(model, PROMPT_BT, max_new_tokens=4, eos_token_id=None).shape[1] == LENGTH + 4

    def test_the_model_s_sampling_settings_serve_hf_s_way(self, model: HfModel):
        """glm-4-9b-chat's file samples; so does a bare call, with top_k 50 though the file says nothing of it."""
        from transformers import GenerationConfig as HfConfig

        published = {"do_sample": True, "temperature": 0.8, "top_p": 0.8, "eos_token_id": EOS, "pad_token_id": 0}
        model.generation_config = GenerationConfig.from_dict(published)
        torch.manual_seed(0)
        ours = generate(model, PROMPT_BT, attention_mask=MASK_BT, max_new_tokens=9)
        torch.manual_seed(0)
        theirs = model.hf.generate(PROMPT_BT, HfConfig(**published, max_new_tokens=9), attention_mask=MASK_BT)
        assert ours.tolist() == theirs.tolist()

    def test_without_a_padding_id_the_first_end_pads(self, model: HfModel):
        model.generation_config = GenerationConfig()
        first = int(generate(model, PROMPT_BT, max_new_tokens=1)[0, -1])
        out = generate(model, PROMPT_BT, max_new_tokens=4, eos_token_id=[first, 3])
        assert out[0, LENGTH:].tolist() == [first] * 4

    def test_a_misspelt_argument_is_refused_by_name(self, model: HfModel):
        with pytest.raises(ValueError, match="max_new_token'"):
            generate(model, PROMPT_BT, max_new_token=3)
        assert generate(model, PROMPT_BT, token_type_ids=None, max_new_tokens=1).shape[1] == LENGTH + 1

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("num_beams", 2),
            ("guidance_scale", 1.5),
            ("penalty_alpha", 0.6),
            ("dola_layers", "high"),
            ("watermarking_config", {}),
            ("prompt_lookup_num_tokens", 3),
            ("stop_strings", ["x"]),
            ("cache_implementation", "static"),
            ("output_attentions", True),
            ("assistant_model", object()),
            ("negative_prompt_ids", PROMPT_BT),
        ],
    )
    def test_what_is_not_implemented_is_refused_by_name(self, name: str, value: Any, model: HfModel):
        with pytest.raises(ConfigError, match=name):
            generate(model, PROMPT_BT, max_new_tokens=1, **{name: value})
        assert model.calls == []

    def test_what_is_not_implemented_is_refused_from_the_model_s_file_as_well(self, model: HfModel):
        model.generation_config = GenerationConfig.from_dict({"num_beams": 4})
        with pytest.raises(ConfigError, match="num_beams=4"):
            generate(model, PROMPT_BT, max_new_tokens=1)
        assert generate(model, PROMPT_BT, max_new_tokens=1, num_beams=1).shape[1] == LENGTH + 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more"),
            ({"num_return_sequences": 2}, "would repeat one greedy continuation"),
            ({"num_return_sequences": 0}, "num_return_sequences must be 1 or more"),
            ({"do_sample": True, "temperature": 0.0}, "temperature must be above 0"),
            ({"do_sample": True, "top_p": 1.0, "top_k": -1}, "top_k must be 1 or more"),
            ({"attention_mask": torch.ones(3, 1, 7, 7)}, "attention_mask must be"),
        ],
    )
    def test_impossible_settings_are_refused(self, arguments: dict[str, Any], message: str, model: HfModel):
        with pytest.raises(ValueError, match=message):
            generate(model, PROMPT_BT, **{"max_length": 99, **arguments})

    def test_a_wrong_type_is_refused_by_name(self, model: HfModel):
        with pytest.raises(ConfigError, match="temperature must be a number"):
            generate(model, PROMPT_BT, temperature="hot")

    def test_no_prompt_and_no_bos_is_refused(self, model: HfModel):
        with pytest.raises(ValueError, match="bos_token_id"):
            generate(model)

    @pytest.mark.parametrize("ids", [PROMPT_BT[0], PROMPT_BT[None]])
    def test_a_prompt_must_be_a_batch(self, ids: Tensor, model: HfModel):
        with pytest.raises(ValueError, match="input_ids must be"):
            generate(model, ids)


class TestWarnings:
    @pytest.fixture(autouse=True)
    def _records(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING)

    def test_sampling_settings_of_a_greedy_call(self, model: HfModel, caplog: pytest.LogCaptureFixture):
        generate(model, PROMPT_BT, max_new_tokens=1, temperature=0.5, top_k=50)
        assert "temperature: no effect without do_sample=True" in caplog.text

    def test_the_model_s_own_sampling_settings_are_no_reason_to_warn(self, model: HfModel, caplog):
        model.generation_config = GenerationConfig(temperature=0.8, top_p=0.8)
        generate(model, PROMPT_BT, attention_mask=MASK_BT, max_new_tokens=1)
        assert caplog.text == ""

    def test_settings_of_beam_search(self, model: HfModel, caplog: pytest.LogCaptureFixture):
        generate(model, PROMPT_BT, max_new_tokens=1, length_penalty=2.0)
        assert "length_penalty has no effect" in caplog.text

    def test_padding_on_the_right(self, model: HfModel, caplog: pytest.LogCaptureFixture):
        generate(model, PROMPT_BT.flip(1), attention_mask=MASK_BT.flip(1), max_new_tokens=1)
        assert "padded on the right" in caplog.text

    def test_a_batch_whose_padding_cannot_be_told_from_ends(self, model: HfModel, caplog: pytest.LogCaptureFixture):
        generate(model, PROMPT_BT, max_new_tokens=1, eos_token_id=[0, 1])
        assert "nothing is masked" in caplog.text


class TestCallersOwn:
    def test_processors_stand_before_the_warpers(self, model: HfModel):
        def lift(ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
            return scores_BV + (torch.arange(scores_BV.shape[1]) == 33) * 30

        out = assert_same(
            model, attention_mask=MASK_BT, logits_processor=[lift], do_sample=True, top_k=2, max_new_tokens=5
        )
        assert 33 in out.sequences[:, LENGTH:].flatten().tolist()

    def test_hf_s_processors_and_criteria_serve(self, model: HfModel):
        from transformers.generation import LogitsProcessorList, StoppingCriteriaList, logits_process, stopping_criteria

        mine = LogitsProcessorList([logits_process.SuppressTokensLogitsProcessor([5, 17])])
        stop = StoppingCriteriaList([stopping_criteria.MaxLengthCriteria(LENGTH + 2)])
        out = assert_same(
            model, attention_mask=MASK_BT, logits_processor=mine, stopping_criteria=stop, max_new_tokens=5
        )
        assert out.sequences.shape[1] == LENGTH + 2

    def test_a_criterion_ends_single_rows(self, model: HfModel):
        def two_for_the_first(ids_BT: Tensor, scores: Any, **_: Any) -> Tensor:
            return (torch.arange(3) == 0) & (ids_BT.shape[1] >= LENGTH + 2)

        settings = {"attention_mask": MASK_BT, "max_new_tokens": 6, "stopping_criteria": [two_for_the_first]}
        out = assert_same(model, **settings, eos_token_id=[300], pad_token_id=0)
        assert out.sequences[0, LENGTH + 2 :].tolist() == [0] * 4
        assert 0 not in out.sequences[1, LENGTH:].tolist()

    def test_a_criterion_sees_the_scores_only_when_they_are_kept(self, model: HfModel):
        seen: list[Any] = []

        def watch(ids_BT: Tensor, scores: Any) -> Tensor:
            seen.append(scores if scores is None else len(scores))
            return torch.zeros(3, dtype=torch.bool)

        keep = {"return_dict_in_generate": True, "output_scores": True}
        generate(model, PROMPT_BT, stopping_criteria=[watch], max_new_tokens=2, eos_token_id=None)
        generate(model, PROMPT_BT, stopping_criteria=[watch], max_new_tokens=2, eos_token_id=None, **keep)
        assert seen == [None, None, 1, 2]

    def test_allowed_tokens(self, model: HfModel):
        def allow(row: int, ids_T: Tensor) -> list[int]:
            return [20 + row, 30 + row]

        out = assert_same(model, attention_mask=MASK_BT, prefix_allowed_tokens_fn=allow, max_new_tokens=4)
        assert set(out.sequences[1, LENGTH:].tolist()) <= {21, 31}

    def test_a_streamer_gets_the_prompt_each_token_and_the_end(self, model: HfModel):
        class Recorder:
            def __init__(self) -> None:
                self.events: list[Any] = []

            def put(self, value: Tensor) -> None:
                self.events.append(value.tolist())

            def end(self) -> None:
                self.events.append("end")

        ours, theirs = Recorder(), Recorder()
        out = generate(model, PROMPT_BT[1:2], streamer=ours, max_new_tokens=4)
        model.hf.generate(PROMPT_BT[1:2], streamer=theirs, max_new_tokens=4)
        assert ours.events == theirs.events
        assert ours.events[-2] == [int(out[0, -1])]


def test_the_record_holds_only_what_was_asked_for(model: HfModel):
    out = generate(model, PROMPT_BT, max_new_tokens=2, eos_token_id=None, return_dict_in_generate=True)
    assert isinstance(out, GenerateOutput)
    assert (out.scores, out.logits) == (None, None)
    assert out.past_key_values is not None
    assert out.past_key_values.get_seq_length() == LENGTH + 1
    uncached = generate(model, PROMPT_BT, max_new_tokens=2, use_cache=False, return_dict_in_generate=True)
    assert isinstance(uncached, GenerateOutput)
    assert uncached.past_key_values is None
    assert isinstance(generate(model, PROMPT_BT, max_new_tokens=1, output_scores=True), Tensor)


def test_the_record_is_had_by_name_by_key_and_by_place(model: HfModel):
    out = assert_same(model, max_new_tokens=3)
    theirs = model.hf.generate(PROMPT_BT, max_new_tokens=3, return_dict_in_generate=True, output_scores=True)
    bare = generate(model, PROMPT_BT, max_new_tokens=3, return_dict_in_generate=True, output_scores=True)
    assert isinstance(bare, GenerateOutput)
    assert list(bare) == list(theirs)
    assert out["sequences"] is out.sequences is out[0]
    assert out["scores"] is out[1]
    assert "logits" not in bare


def test_settings_may_be_transformers_own(model: HfModel):
    from transformers import GenerationConfig as HfConfig

    settings = HfConfig(do_sample=True, top_k=5, max_new_tokens=6, eos_token_id=EOS, pad_token_id=0)
    assert_same(model, generation_config=settings)
    with pytest.raises(ConfigError, match="num_beams=2 is not implemented"):
        generate(model, PROMPT_BT, HfConfig(num_beams=2))


def test_what_their_settings_leave_unset_the_model_s_own_decide(model: HfModel):
    """An unset key of theirs is a None in `to_dict`, and must not hide what the model's file says."""
    from transformers import GenerationConfig as HfConfig

    model.generation_config = GenerationConfig(extra={"num_beams": 3})
    with pytest.raises(ConfigError, match="num_beams=3 is not implemented"):
        generate(model, PROMPT_BT, HfConfig(max_new_tokens=2))


@pytest.mark.parametrize("ids", [torch.tensor(EOS), torch.tensor(EOS[0])])
def test_ids_may_be_tensors(ids: Tensor, model: HfModel):
    assert_same(model, max_new_tokens=8, eos_token_id=ids, pad_token_id=torch.tensor(0))
    assert GenerationConfig(eos_token_id=ids).eos_token_ids == tuple(ids.reshape(-1).tolist())
