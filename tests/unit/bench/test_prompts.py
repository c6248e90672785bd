"""Prompts are of plain tokens, of the length asked for, and the same for the same seed."""

from glm_cluster.bench.prompts import as_text, draw_ids


def test_prompts_hold_plain_tokens_only(tokenizer) -> None:
    prompts = draw_ids(tokenizer, count=20, length=500, seed=1)
    assert [len(ids) for ids in prompts] == [500] * 20
    assert {id for ids in prompts for id in ids} == set(range(256))  # neither the hole nor the control token


def test_prompts_follow_from_the_seed(tokenizer) -> None:
    first = draw_ids(tokenizer, count=2, length=8, seed=1)
    assert first == draw_ids(tokenizer, count=2, length=8, seed=1)
    assert first != draw_ids(tokenizer, count=2, length=8, seed=2)
    assert first[0] != first[1]


def test_text_is_what_the_ids_say(tokenizer) -> None:
    assert as_text(tokenizer, [tuple(b"abc")]) == ["abc"]
