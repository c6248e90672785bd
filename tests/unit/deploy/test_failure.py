"""Errors by name, and out of what Serve says."""

import pytest

from glm_cluster.deploy.failure import error_within, named_error
from glm_cluster.errors import CheckpointError, ConfigError, EngineUnavailable, InternalError, InvalidRequest


def test_errors_of_ours_come_back_by_name():
    error = named_error("InvalidRequest", "too long", param="prompt")
    assert type(error) is InvalidRequest
    assert (error.message, error.param) == ("too long", "prompt")


@pytest.mark.parametrize("name", ["_rebuild", "Exception", "annotations", "__name__"])
def test_nothing_else_is_called_by_name(name: str):
    assert type(named_error(name, "x")) is InternalError


def test_the_last_error_of_ours_in_a_traceback_counts():
    text = """Deploying application glm failed: RuntimeError: Traceback (most recent call last):
ray.exceptions.RayTaskError: glm_cluster.errors.ConfigError: outer
  File "x.py", line 3
glm_cluster.errors.CheckpointError: /m/model.safetensors has no tensor 'lm_head.weight'
"""
    error = error_within(text)
    assert type(error) is CheckpointError
    assert isinstance(error, ConfigError)
    assert error.message == "/m/model.safetensors has no tensor 'lm_head.weight'"


def test_a_failure_of_somebody_else_is_passed_on_whole():
    assert error_within("no nodes").message == "no nodes"
    assert type(error_within("no nodes")) is EngineUnavailable
