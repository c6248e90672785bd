"""Waits double and level off, after however many failures."""

import pytest

from glm_cluster.deploy.backoff import pause_s


@pytest.mark.parametrize(("failures", "wait"), [(0, 0.5), (1, 1.0), (4, 8.0), (5, 10.0), (5000, 10.0)])
def test_waits_double_up_to_the_longest(failures: int, wait: float):
    assert pause_s(failures, 0.5, 10.0) == wait
