"""The side channel's records survive their wire form, and strangers are not heard."""

from dataclasses import replace

import msgpack

from glm_cluster.deploy.channel import Ended, Orders, Receipt, Report, ReturnAddress, Seal, Submission, Tokens
from glm_cluster.errors import InvalidRequest
from glm_cluster.records import (
    Encoded,
    EncodeRequest,
    GenerationRequest,
    Grammar,
    ReplicaLoad,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)


def request(**given: object) -> GenerationRequest:
    sampling = SamplingParams(max_tokens=9, temperature=0.5, top_k=3, top_p=0.9, seed=2**62, stop_token_ids=(7, 8))
    return GenerationRequest(**{"request_id": "r", "prompt": (1, 2), "sampling": sampling, **given})


def test_orders_round_trip():
    submissions = (
        Submission(
            request(output=(3,), attempt=2, max_drafts=0, priority=-3, cache_salt="s"),
            ReturnAddress("tcp://10.0.0.1:5", b"\x00key"),
        ),
        Submission(request(), None),
        Submission(EncodeRequest(request_id="e", prompt=(1, 2), pooling="mean", attempt=3, cache_salt="s"), None),
    )
    orders = Orders(tuple(s.pack() for s in submissions), (("r", 1), ("s", 0)))
    arrived = Orders.unpack(orders.pack())
    assert arrived == orders
    assert tuple(map(Submission.unpack, arrived.adds)) == submissions


EVERYTHING = SamplingParams(
    max_tokens=9,
    min_tokens=2,
    temperature=0.5,
    top_k=3,
    top_p=0.9,
    min_p=0.05,
    seed=2**62,
    presence_penalty=-0.5,
    frequency_penalty=1.5,
    repetition_penalty=1.1,
    logit_bias=((4, -100.0), (5, 0.25)),
    allowed_token_ids=(4, 5, 6),
    bad_words=((5,), (5, 6)),
    stop_token_ids=(7, 8),
    logprobs=0,
    prompt_logprobs=3,
    grammar=Grammar("regex", "[a-z]+", opens_line=True, instead='start: "1"'),
)


def test_every_sampling_parameter_arrives():
    defaults = SamplingParams(max_tokens=1)
    assert [name for name in SamplingParams.__slots__ if getattr(EVERYTHING, name) == getattr(defaults, name)] == []
    for sampling in (EVERYTHING, defaults, replace(EVERYTHING, allowed_token_ids=(), grammar=None, temperature=1)):
        arrived = Submission.unpack(Submission(request(sampling=sampling), None).pack()).request
        assert arrived == request(sampling=sampling)
        assert hash(arrived) == hash(request(sampling=sampling))  # tuples all the way down


def test_avoidance_is_for_the_router_and_stays_behind():
    assert Submission.unpack(Submission(request(), None, avoid=("a",)).pack()).avoid == ()


def test_tokens_round_trip():
    tokens = Tokens("epoch", (TokenEvent("r", 1, 4, (5, 6)), TokenEvent("s", 0, 0, (2,), "stop", 16)))
    assert Tokens.unpack(tokens.pack()) == tokens


def test_logprobs_round_trip():
    judged = (TokenLogprobs(-0.25, 1, ((5, -0.25), (2, -1.5))), TokenLogprobs(-7.0, 30))
    plain = TokenEvent("r", 1, 4, (5, 6))
    events = (replace(plain, logprobs=judged), replace(plain, prompt_logprobs=(None, *judged)), plain)
    tokens = Tokens("epoch", events)
    assert Tokens.unpack(tokens.pack()) == tokens


def test_who_asks_for_no_logprobs_sends_none():
    plain = Tokens("epoch", (TokenEvent("r", 1, 4, (5, 6)),))
    assert plain.pack() == msgpack.packb(["epoch", [["r", 1, 4, [5, 6], None, 0]]])


def test_report_round_trip():
    load = ReplicaLoad(num_waiting=1, num_running=2, num_free_blocks=3, num_blocks=4, num_drafted=6, num_accepted=5)
    encoded = Encoded(1, 2, b"\x00\xff\x80?abcd", 16)
    ended = (Ended("r", 0, Receipt(5, "length")), Ended("e", 1, Receipt(0, "stop", encoded)))
    report = Report(12, load, ended, (1, 4))
    assert Report.unpack(report.pack()) == report


def test_an_error_arrives_as_itself():
    load = ReplicaLoad(num_waiting=0, num_running=0, num_free_blocks=0, num_blocks=0)
    sent = Report(0, load, (Ended("r", 3, InvalidRequest("too long", param="prompt")),), ())
    (ended,) = Report.unpack(sent.pack()).ended
    assert (ended.request_id, ended.attempt) == ("r", 3)
    assert type(ended.outcome) is InvalidRequest
    assert (ended.outcome.message, ended.outcome.param) == ("too long", "prompt")


def test_a_seal_recognises_its_own():
    seal = Seal.new()
    message = seal.close(b"body")
    assert seal.open(message) == b"body"
    assert Seal.new().open(message) is None
    assert seal.open(message[:-1] + b"x") is None
    assert seal.open(b"") is None


def test_keys_are_not_printed():
    assert "key" not in repr(ReturnAddress("tcp://h:1", b"secret"))
    assert "secret" not in repr(ReturnAddress("tcp://h:1", b"secret"))
