"""Long bodies are read in pieces, to the same values and refusals as short ones."""

import json
from random import Random

import pytest

from glm_cluster.api import strict_json
from glm_cluster.api.strict_json import MAX_VALUES, decode_json
from glm_cluster.errors import InvalidRequest

GOOD = [
    "[1,2,3]",
    " [ 1 , -2 ,\n3.5e2, true,null ] ",
    "[]",
    "[   \n  ]",
    '["a,b]", "c", {"d": [1, 2], "e": {}}, [[3], []]]',
    '{"prompt": [1,2,3,4,5,6,7,8,9], "model": "m]", "seed": 9223372036854775808}',
    '"\\u00e9\\ud83d\\ude00 ]"',
    '{"a": [[1, 2, 3, 4], [5, 6, 7, 8]], "b": []}',
    "[" * 100 + "]" * 100,
    "[" + "[], " * 200 + '{"a": [{}]}]',
]
BAD = [
    "[1,2,,3]",
    "[1,2,3,]",
    "[,1,2,3]",
    "[1,2,3",
    "[1 2 3 4 5]",
    "[1,2,NaN,4]",
    "[1,2,3] 4",
    "[1,2,3,      ]",
    '{"a": 1, "b": 2, "a": 3}',
    '[1, 2, "a]',
    "[01, 2, 3]",
    "[" * 5000,
    "[" * 101 + "]" * 101,
    '{"a":' * 101 + "1" + "}" * 101,
    "",
]


@pytest.fixture(params=[1, 2, 5])
def in_pieces(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Read everything as if it were long."""
    monkeypatch.setattr(strict_json, "_LONG", -1)
    monkeypatch.setattr(strict_json, "_FLAT", request.param)
    monkeypatch.setattr(strict_json, "_PIECE", request.param)


def refusal(text: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode_json(text.encode())
    return caught.value.message


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("text", GOOD)
def test_long_values_are_read_as_the_library_reads_them(text: str):
    assert decode_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize("text", BAD)
def test_long_faults_are_told_as_short_ones(text: str, monkeypatch: pytest.MonkeyPatch):
    at_once = refusal(text)
    monkeypatch.setattr(strict_json, "_LONG", -1)
    monkeypatch.setattr(strict_json, "_FLAT", 2)
    monkeypatch.setattr(strict_json, "_PIECE", 2)
    assert refusal(text) == at_once


def test_a_long_body_as_clients_send_it():
    random = Random(1)
    body = {"prompt": [random.randrange(150_000) for _ in range(100_000)], "model": "tiny", "text": "é" * 100_000}
    assert decode_json(json.dumps(body, indent=1).encode()) == body


@pytest.mark.parametrize("item", ["[]", "{}", '""', "[[]]", "[1]", '1,""', "null,[]"])
def test_a_long_body_of_more_values_than_a_request_can_need_is_refused(item: str):
    """Megabytes of empty arrays held everybody's prompts up for seconds."""
    body = f'{{"prompt": [{",".join([item] * (MAX_VALUES + 1))}]}}'
    assert refusal(body) == (
        f"the body holds more than {MAX_VALUES} values (a list of numbers is one); send fewer at a time"
    )
    with pytest.raises(InvalidRequest, match=r"^tools holds more than \d+ values") as caught:
        decode_json(body.encode(), param="tools")
    assert caught.value.param == "tools"


def test_the_values_of_an_object_are_counted():
    assert "values" in refusal("{" + ",".join(f'"{index}":1' for index in range(MAX_VALUES + 1)) + "}")


@pytest.mark.parametrize("length", [100, 1000, 1_000_000])
def test_token_ids_are_not_counted(length: int):
    body = {"prompt": [[index % 1000 for index in range(length)] for _ in range(1_000_000 // length)]}
    text = json.dumps(body)
    assert text.count(",") > MAX_VALUES
    assert decode_json(text.encode()) == body


def test_brackets_in_a_text_are_not_counted():
    body = {"prompt": "[],{}," * MAX_VALUES}
    assert decode_json(json.dumps(body).encode()) == body


def test_what_is_not_utf8_is_refused():
    with pytest.raises(InvalidRequest, match="utf-8"):
        decode_json(b'"\xff"')
