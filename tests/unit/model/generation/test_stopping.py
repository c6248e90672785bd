import pytest
import torch
from torch import Tensor

from glm_cluster.model.generation.config import GenerationConfig
from glm_cluster.model.generation.stopping import EosToken, MaxLength, MaxTime, criteria_for, ended, fills

IDS_BT = torch.tensor([[5, 1, 7], [5, 1, 2], [1, 1, 9]])


def test_any_of_the_ends_ends_a_row_and_only_as_its_last_id():
    assert EosToken((1, 2, 9))(IDS_BT, None).tolist() == [False, True, True]


@pytest.mark.parametrize(("length", "ends"), [(2, True), (3, True), (4, False)])
def test_all_rows_end_at_max_length(length: int, ends: bool):
    assert MaxLength(length)(IDS_BT, None).tolist() == [ends] * 3


def test_all_rows_end_once_the_time_is_over():
    assert MaxTime(5.0, start=-1e9)(IDS_BT, None).tolist() == [True] * 3
    assert MaxTime(1e9)(IDS_BT, None).tolist() == [False] * 3


def test_a_configuration_gives_the_reasons_it_names():
    assert criteria_for(GenerationConfig(), 9) == [MaxLength(9)]
    length, time, eos = criteria_for(GenerationConfig(max_time=3.0, eos_token_id=4), 9)
    assert (length, eos) == (MaxLength(9), EosToken((4,)))
    assert isinstance(time, MaxTime)
    assert time.seconds == 3.0


def test_one_reason_is_enough():
    def second(ids_BT: Tensor, scores: tuple[Tensor, ...] | None) -> Tensor:
        return torch.tensor([False, True, False])

    criteria = criteria_for(GenerationConfig(eos_token_id=9), 4, [second])
    assert ended(criteria, IDS_BT, None).tolist() == [False, True, True]
    assert ended([], IDS_BT, None).tolist() == [False] * 3


def test_rows_are_filled_only_where_ends_are_known():
    assert fills(criteria_for(GenerationConfig(eos_token_id=9), 4))
    assert not fills(criteria_for(GenerationConfig(), 4))
