"""What a model that answers with numbers may be asked."""

import pytest

from glm_cluster.api.inputs import ClassifyRequest, ClassifyTokensRequest, EmbeddingRequest
from glm_cluster.errors import InvalidRequest


def embedding(given, **fields):
    return EmbeddingRequest.parse({"model": "m", "input": given} | fields)


@pytest.mark.parametrize(
    ("given", "inputs", "first_name"),
    [
        ("ab", ["ab"], "input"),
        (["ab"], ["ab"], "input.0"),
        (["ab", "c"], ["ab", "c"], "input.0"),
        ([1, 2], [[1, 2]], "input"),
        ([[1, 2]], [[1, 2]], "input.0"),
        ([[1], [2, 3]], [[1], [2, 3]], "input.0"),
    ],
)
def test_all_of_openais_forms_are_taken(given, inputs, first_name):
    request = embedding(given)
    assert list(request.inputs) == inputs
    assert request.name_of(0) == first_name


def test_defaults():
    request = embedding("a")
    assert (request.encoding_format, request.pooling, request.normalize) == ("float", "last", True)
    assert request.add_special_tokens
    assert not ClassifyRequest.parse({"model": "m", "input": "a"}).raw_scores
    tokens = ClassifyTokensRequest.parse({"model": "m", "input": "a"})
    assert not tokens.raw_scores
    assert not tokens.include_scores


NO_INPUT = "input: Input should be a string, a list of strings, a list of token ids or a list of such lists"


@pytest.mark.parametrize(
    ("given", "words", "param"),
    [
        ("", "input: Input should not be empty", "input"),
        ([], "input: Input should not be empty", "input"),
        (["a", ""], "input.1: Input should not be empty", "input.1"),
        ([[1], []], "input.1: Input should not be empty", "input.1"),
        ([[]], "input.0: Input should not be empty", "input.0"),
        (["a", 1], "input.1: Input should be a valid string", "input.1"),
        ([1, "a"], "input.1: Input should be a valid integer", "input.1"),
        ([[1], "a"], "input.1: Input should be a valid list", "input.1"),
        ([[1], [2, "a"]], "input.1.1: Input should be a valid integer", "input.1.1"),
        ([1, -2], "input.1: Input should be greater than or equal to 0", "input.1"),
        ([True], "input.0: Input should be a valid integer", "input.0"),
        ([1.5], NO_INPUT, "input"),
        ([None], NO_INPUT, "input"),
        ({"a": 1}, NO_INPUT, "input"),
        (7, NO_INPUT, "input"),
        (None, NO_INPUT, "input"),
        (["a"] * 2049, "input: Input should have at most 2048 items", "input"),
        ([[1]] * 2049, "input: Input should have at most 2048 items", "input"),
    ],
)
@pytest.mark.parametrize("kind", [EmbeddingRequest, ClassifyRequest, ClassifyTokensRequest])
def test_bad_inputs_are_refused_by_name(kind, given, words, param):
    with pytest.raises(InvalidRequest) as caught:
        kind.parse({"model": "m", "input": given})
    assert (caught.value.message, caught.value.param) == (words, param)


def test_the_longest_lists_are_taken():
    assert len(embedding(["a"] * 2048).inputs) == 2048
    assert len(embedding([7] * 5000).inputs[0]) == 5000


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (EmbeddingRequest, {"dimensions": 8}, "unsupported fields: dimensions"),
        (EmbeddingRequest, {"user": ""}, "user: "),
        (EmbeddingRequest, {"truncate": True}, "unsupported fields: truncate"),
        (EmbeddingRequest, {"raw_scores": True}, "unsupported fields: raw_scores"),
        (EmbeddingRequest, {"encoding_format": "int8"}, "encoding_format: "),
        (EmbeddingRequest, {"pooling": "max"}, "pooling: Input should be 'last' or 'mean'"),
        (EmbeddingRequest, {"normalize": 1}, "normalize: "),
        (ClassifyRequest, {"include_scores": True}, "unsupported fields: include_scores"),
        (ClassifyRequest, {"raw_scores": "yes"}, "raw_scores: "),
        (ClassifyTokensRequest, {"add_special_tokens": 0}, "add_special_tokens: "),
        (ClassifyTokensRequest, {"model": 3}, "model: "),
    ],
)
def test_bad_fields_are_refused(kind, fields, words):
    with pytest.raises(InvalidRequest) as caught:
        kind.parse({"model": "m", "input": "a"} | fields)
    assert words in caught.value.message


def test_null_is_not_given():
    assert embedding("a", pooling=None, normalize=None, encoding_format=None).normalize
