"""The error tree: statuses that exist on both wires, and safe passage between processes."""

import pickle
from http import HTTPStatus

import grpc
import pytest

from glm_cluster import errors
from glm_cluster.errors import ConfigError, GlmError, InvalidRequest, ModelNotFound

CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, GlmError)]


@pytest.mark.parametrize("cls", CLASSES)
def test_statuses_exist(cls: type[GlmError]) -> None:
    assert 400 <= HTTPStatus(cls.http_status) < 600
    assert cls.grpc_status in grpc.StatusCode.__members__


@pytest.mark.parametrize("cls", CLASSES)
def test_pickles_whole(cls: type[GlmError]) -> None:
    """Ray carries errors between processes by pickle, which forgets keyword arguments by default."""
    copy = pickle.loads(pickle.dumps(cls("a sentence", param="max_tokens")))
    assert type(copy) is cls
    assert (copy.message, copy.param, str(copy)) == ("a sentence", "max_tokens", "a sentence")


def test_codes_tell_classes_apart() -> None:
    codes = [cls.code for cls in CLASSES if cls not in (GlmError, errors.InternalError)]
    assert len(codes) == len(set(codes))


def test_blame_agrees_with_status() -> None:
    """Clients retry a server_error and not an invalid_request_error."""
    for cls in CLASSES:
        assert (cls.kind == "invalid_request_error") == issubclass(cls, InvalidRequest)
        if issubclass(cls, InvalidRequest):
            assert 400 <= cls.http_status < 500


def test_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__
    assert [cls.__name__ for cls in CLASSES if cls.__name__ not in errors.__doc__] == []
    assert issubclass(errors.CheckpointError, ConfigError)


@pytest.mark.parametrize("letter", ["a", "é", "国", "\U0001f600", "\ud800"])
def test_a_refusal_is_short_whatever_it_quotes(letter: str) -> None:
    """A model's name of a megabyte came back whole, and as a gRPC trailer it broke the connection."""
    error = ModelNotFound(f"no model {letter * 10**6} here", param=letter * 10**6)
    assert error.message.startswith("no model ")
    assert error.message.endswith("…")
    assert len(error.message.encode()) <= 2048
    assert len((error.param or "").encode()) <= 256


def test_a_refusal_of_ordinary_length_stays_as_it_is() -> None:
    text = "max_tokens: " + "国" * 600
    assert InvalidRequest(text, param="max_tokens").message == text
