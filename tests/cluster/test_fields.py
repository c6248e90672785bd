"""What clients ask beside a prompt, over both wires of a running cluster: same tokens, same probabilities."""

from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest
from support.cluster import RunningCluster

from glm_cluster.api.generations import seed_of
from glm_cluster.api.proto import glm_pb2, glm_pb2_grpc

PROMPT = [*range(40, 90)]
EOS = 300
SAMPLED = {"temperature": 1.5, "seed": 11, "max_tokens": 12, "ignore_eos": True}
SAMPLING = {field.name for field in glm_pb2.Sampling.DESCRIPTOR.fields}


@pytest.fixture(scope="module")
def cluster(start_cluster: Callable[..., RunningCluster], settings: Callable[..., dict[str, Any]]) -> RunningCluster:
    return start_cluster(settings())


@pytest.fixture
def ask(cluster: RunningCluster) -> Callable[..., dict[str, Any]]:
    """Complete over HTTP."""

    def post(**fields: Any) -> dict[str, Any]:
        body = {"model": "tiny", "prompt": PROMPT, "return_token_ids": True, **SAMPLED, **fields}
        response = httpx.post(f"{cluster.http_url}/v1/completions", json=body, timeout=60)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    return post


def over_grpc(cluster: RunningCluster, **fields: Any) -> list[list[glm_pb2.GenerateChunk]]:
    """The chunks of each choice."""
    body = {**SAMPLED, **fields}
    sampling = {name: body.pop(name) for name in SAMPLING & body.keys()}
    if "logit_bias" in sampling:
        sampling["logit_bias"] = {int(id): bias for id, bias in sampling["logit_bias"].items()}
    if "allowed_token_ids" in sampling:
        sampling["allowed_token_ids"] = {"ids": sampling["allowed_token_ids"]}
    request = glm_pb2.GenerateRequest(
        model="tiny", token_ids={"ids": PROMPT}, return_token_ids=True, sampling=sampling, **body
    )
    with grpc.insecure_channel(cluster.grpc_address) as channel:
        chunks = list(glm_pb2_grpc.GlmStub(channel).Generate(request, timeout=60))
    return [[chunk for chunk in chunks if chunk.index == index] for index in range(body.get("n", 1))]


def ids_of(answer: dict[str, Any]) -> list[list[int]]:
    return [choice["token_ids"] for choice in answer["choices"]]


FIELDS = [
    {},
    {"n": 3},
    {"presence_penalty": 2.0, "frequency_penalty": 1.0, "repetition_penalty": 1.7},
    {"logit_bias": {"65": 100.0}},
    {"allowed_token_ids": [70, 71, 72]},
    {"bad_words": ["F"], "allowed_token_ids": [70, 71, 72]},
    {"min_tokens": 4, "ignore_eos": False, "allowed_token_ids": [70, EOS]},
    {"logprobs": 3, "n": 2},
    {"prompt_logprobs": 1, "truncate_prompt_tokens": 20},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: "-".join(fields) or "plain")
def test_both_wires_give_the_same_tokens_and_probabilities(cluster, ask, fields) -> None:
    answer = ask(**fields)
    choices = over_grpc(cluster, **fields)
    assert ids_of(answer) == [[id for chunk in chunks for id in chunk.token_ids] for chunks in choices]
    assert [choice["text"] for choice in answer["choices"]] == ["".join(c.text for c in chunks) for chunks in choices]
    for choice, chunks in zip(answer["choices"], choices, strict=True):
        places = [place for chunk in chunks for place in chunk.logprobs]
        told = choice["logprobs"]["token_logprobs"] if choice["logprobs"] else []
        assert told == pytest.approx([place.chosen.logprob for place in places])
        of_prompt = (choice.get("prompt_logprobs") or [None])[1:]
        assert [
            place[str(id)]["logprob"] for place, id in zip(of_prompt, choice["prompt_token_ids"][1:], strict=False)
        ] == (pytest.approx([place.chosen.logprob for place in chunks[0].prompt_logprobs[1:]]))


def test_choices_are_those_of_their_seeds_alone(ask) -> None:
    together = ids_of(ask(n=3))
    assert together == [ids_of(ask(seed=seed_of(11, index)))[0] for index in range(3)]
    assert len(set(map(tuple, together))) == 3


def test_what_is_asked_is_done(ask) -> None:
    assert set(ids_of(ask(logit_bias={"65": 100.0}, temperature=0))[0]) == {65}
    assert set(ids_of(ask(allowed_token_ids=[70, 71]))[0]) <= {70, 71}
    assert set(ids_of(ask(allowed_token_ids=[70, 71], bad_words=["F"]))[0]) == {71}
    early = ask(min_tokens=4, allowed_token_ids=[EOS, 70], logit_bias={"300": 100.0}, ignore_eos=False)["choices"][0]
    assert (early["token_ids"], early["finish_reason"]) == ([70] * 4 + [EOS], "stop")
    without_repeats = ids_of(ask(frequency_penalty=2.0, logit_bias={"65": 3.0}, temperature=0))[0]
    assert without_repeats.count(65) < 12


def test_probabilities_of_an_answer_are_those_of_it_as_a_prompt(ask) -> None:
    answer = ask(logprobs=2)["choices"][0]
    again = ask(prompt=PROMPT + answer["token_ids"], prompt_logprobs=0, max_tokens=1)["choices"][0]
    as_prompt = [
        place[str(id)]["logprob"] for place, id in zip(again["prompt_logprobs"][50:], answer["token_ids"], strict=True)
    ]
    assert answer["logprobs"]["token_logprobs"] == pytest.approx(as_prompt, abs=1e-4)


def test_a_prompt_is_scored_alone_as_before_an_answer(ask) -> None:
    alone = ask(prompt_logprobs=1, max_tokens=0, logprobs=1, echo=True)
    before = ask(prompt_logprobs=1, max_tokens=1)
    choice = alone["choices"][0]
    assert choice["prompt_logprobs"] == before["choices"][0]["prompt_logprobs"]
    assert len(choice["logprobs"]["tokens"]) == len(PROMPT)
    assert (choice["finish_reason"], choice["token_ids"], alone["usage"]["completion_tokens"]) == ("length", [], 0)


def test_a_stop_string_ends_the_answer_where_it_is_complete(ask) -> None:
    whole = ask(allowed_token_ids=[70, 71, 72, 73], max_tokens=40)["choices"][0]["text"]
    stop = whole[20:23]
    choice = ask(allowed_token_ids=[70, 71, 72, 73], max_tokens=40, stop=[stop])["choices"][0]
    assert choice["text"] == whole[: whole.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert len(choice["token_ids"]) == whole.index(stop) + 3


def test_prefixes_are_shared_within_a_salt_alone(ask) -> None:
    def cached(**fields: Any) -> int:
        return int(ask(**fields)["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached(cache_salt="a") == 0
    assert cached(cache_salt="a") > 0
    assert cached(cache_salt="b") == 0


def test_prompts_of_a_list_are_answered_as_alone(ask) -> None:
    prompts = [PROMPT, PROMPT[:7], [5]]
    assert ids_of(ask(prompt=prompts)) == [ids_of(ask(prompt=prompt))[0] for prompt in prompts]
