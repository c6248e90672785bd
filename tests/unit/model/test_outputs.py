"""Outputs as records that are also mappings and tuples of what is there."""

import pytest
import torch

from glm_cluster.model.outputs import CausalLMOutputWithPast, TokenClassifierOutput

LOGITS = torch.zeros(1, 2, 3)
OUTPUT = CausalLMOutputWithPast(logits=LOGITS, hidden_states=(LOGITS,))


def test_absent_fields_have_no_key_and_no_place() -> None:
    assert OUTPUT.loss is None
    assert OUTPUT.keys() == list(OUTPUT) == ["logits", "hidden_states"]
    assert len(OUTPUT) == len(OUTPUT.to_tuple()) == 2
    assert OUTPUT[0] is OUTPUT["logits"] is OUTPUT.logits is LOGITS
    assert OUTPUT[1:] == (OUTPUT.hidden_states,)
    assert ("loss" in OUTPUT, "logits" in OUTPUT) == (False, True)


def test_an_absent_key_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="loss"):
        OUTPUT["loss"]
    with pytest.raises(IndexError):
        OUTPUT[2]


def test_a_field_that_is_set_later_takes_its_place() -> None:
    output = TokenClassifierOutput(logits=LOGITS)
    output.loss = torch.tensor(1.5)
    assert output.keys() == ["loss", "logits"]
    assert output[0] is output.loss


def test_token_classifiers_return_no_cache() -> None:
    assert not hasattr(TokenClassifierOutput(), "past_key_values")
