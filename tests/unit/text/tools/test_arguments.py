"""Arguments as JSON that any wire can carry."""

import json

import pytest

from glm_cluster.text.tools.argument_stream import ArgumentStream
from glm_cluster.text.tools.arguments import Arguments, as_json


@pytest.mark.parametrize("written", ['["\\ud800"]', '{"\\udfff": "é\\ud83d"}', '"\\ud800"', '["\\ud83d\\ude00é"]'])
def test_half_a_surrogate_pair_stays_an_escape(written: str):
    value = Arguments({"properties": {"x": {"type": ["array", "object", "number"]}}}).value("x", written)
    whole = as_json({"x": value})
    assert json.loads(whole.encode()) == {"x": value}
    stream = ArgumentStream(Arguments({"properties": {"x": {"type": ["array", "object", "number"]}}}))
    assert stream.last("x", written) + stream.end() == whole


def test_other_text_is_written_as_it_is():
    assert as_json({"é": '"\n😀'}) == '{"é": "\\"\\n😀"}'
