"""Each comparison can fail, and says what it saw."""

import torch

from glm_cluster.model.config import GlmConfig
from glm_cluster.verify import checks
from glm_cluster.verify.engine_answers import GroupAnswers, Run
from glm_cluster.verify.oracle import Answer

CONFIG = GlmConfig(vocab_size=301, pad_token_id=0, rope_theta=5e6)
LOGITS = torch.tensor([[1.0, 2.0, -4.0], [0.5, 0.25, 0.125]])
ANSWERS = [Answer(LOGITS, (5, 6, 7), (0.5, 0.0004, 2.0))]


def test_a_key_read_otherwise_is_named() -> None:
    theirs = CONFIG.to_dict()
    assert checks.config_check(CONFIG, theirs).verdict == "equal"
    assert checks.config_check(CONFIG, {**theirs, "eos_token_id": [151329, 151336, 151338]}).verdict == "equal"
    found = checks.config_check(CONFIG, {**theirs, "rms_norm_eps": 1e-5})
    assert (found.verdict, found.detail) == ("different", "rms_norm_eps is 1.5625e-07 here and 1e-05 there")
    rope = {**theirs["rope_parameters"], "rope_theta": 1e4}
    found = checks.config_check(CONFIG, {**theirs, "rope_parameters": rope})
    assert found.detail == "rope_theta is 5000000.0 here and 10000.0 there"


def test_the_flat_spelling_of_rope_is_understood() -> None:
    theirs = {k: v for k, v in CONFIG.to_dict().items() if k != "rope_parameters"}
    flat = {**theirs, "rope_theta": 5e6, "partial_rotary_factor": 0.5}
    assert checks.config_check(CONFIG, flat).verdict == "equal"
    assert checks.config_check(CONFIG, {**flat, "partial_rotary_factor": 1.0}).verdict == "different"


def test_exact_logits_are_equal_to_the_bit() -> None:
    assert checks.exact_logits_check("x", [LOGITS.clone()], ANSWERS).verdict == "equal"
    moved = LOGITS.clone()
    moved[1, 2] = moved[1, 2].nextafter(torch.tensor(1.0))
    found = checks.exact_logits_check("x", [moved], ANSWERS)
    assert found.verdict == "different"
    assert "prompt 1: the logit of id 2 at position 1 is" in found.detail
    assert checks.exact_logits_check("x", [LOGITS.bfloat16()], ANSWERS).verdict == "different"


def test_close_logits_stay_within_a_share_of_the_largest() -> None:
    """The largest is 4: 1e-3 of it is 4e-3."""
    inside, outside = LOGITS.clone(), LOGITS.clone()
    inside[0, 0] += 3.9e-3
    outside[0, 0] += 4.1e-3
    found = checks.close_logits_check("x", [inside], ANSWERS, "float32")
    assert found.verdict == "within"
    assert found.measured is not None
    assert 0.9e-3 < found.measured < 1e-3 == found.bound
    assert checks.close_logits_check("x", [outside], ANSWERS, "float32").verdict == "different"
    assert checks.close_logits_check("x", [outside], ANSWERS, "bfloat16").verdict == "within"


def test_not_a_number_is_never_close() -> None:
    broken = LOGITS.clone()
    broken[1, 1] = float("nan")
    found = checks.close_logits_check("x", [broken], ANSWERS, "float32")
    assert found.verdict == "different"
    assert "id 1 at position 1 is nan here and 0.25 there" in found.detail
    assert checks.exact_logits_check("x", [broken], ANSWERS).verdict == "different"


def test_another_vocabulary_is_a_difference_and_no_crash() -> None:
    for check in (
        checks.exact_logits_check("x", [LOGITS[:, :2]], ANSWERS),
        checks.close_logits_check("x", [LOGITS[:, :2]], ANSWERS, "float32"),
    ):
        assert (check.verdict, check.detail) == ("different", "prompt 1 has logits [2, 2] here and [2, 3] there")


def test_ids_may_part_at_a_near_tie_only() -> None:
    assert checks.greedy_check("x", [(5, 6, 7)], ANSWERS, 1e-3).verdict == "equal"
    tie = checks.greedy_check("x", [(5, 9, 9)], ANSWERS, 1e-3)
    assert (tie.verdict, tie.measured, tie.bound) == ("within", 0.0004, 1e-3)
    wrong = checks.greedy_check("x", [(5, 6, 8)], ANSWERS, 1e-3)
    assert wrong.verdict == "different"
    assert wrong.detail == "new token 3 of prompt 1 is 8 here and 7 there, by 2 in logits"
    assert checks.greedy_check("x", [(4, 6, 7)], ANSWERS, 1e-3).verdict == "different"
    assert checks.greedy_check("x", [(5, 9, 9)], ANSWERS, 0.0).verdict == "different"


def test_too_few_or_too_many_ids_are_a_difference() -> None:
    for ids in ((5, 6), (5, 6, 7, 8), ()):
        found = checks.greedy_check("x", [ids], ANSWERS, 1e-3)
        assert found.verdict == "different"
        assert "the end" in found.detail


def test_the_near_tie_of_bf16_grows_with_the_logits() -> None:
    assert checks.near_tie("float32", ANSWERS) == 1e-3
    assert checks.near_tie("bfloat16", ANSWERS) == 4 / 64


def test_the_engine_owes_itself_equal_tokens() -> None:
    whole = Run(((1, 2), (3, 4)), 0)
    moved = Run(((1, 2), (3, 9)), 16)
    group = GroupAnswers(logits=(), whole=whole, chunked=moved, warm=moved)
    assert checks.chunks_check("x", group).detail == "new token 2 of prompt 2 is 9, in one step 4"
    assert checks.prefix_check("x", group).verdict == "different"
    same = GroupAnswers(logits=(), whole=whole, chunked=whole, warm=Run(whole.ids, 16))
    assert checks.chunks_check("x", same).verdict == checks.prefix_check("x", same).verdict == "equal"
    cold = GroupAnswers(logits=(), whole=whole, chunked=whole, warm=whole)
    assert checks.prefix_check("x", cold).verdict == "skipped"


def test_an_id_without_a_token_is_named() -> None:
    assert checks.unused_check(((9, 12), (20, 21)), [(1, 2), (8, 12)]).verdict == "equal"
    found = checks.unused_check(((9, 12), (20, 21)), [(1, 2), (8, 20)])
    assert (found.verdict, found.detail) == ("different", "id 20, which names no token, was sampled")
    assert checks.unused_check(None, [(1,)]).verdict == "skipped"
