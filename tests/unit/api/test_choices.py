"""From events to deltas: what ends a text, what is told of its tokens, and how choices run side by side."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_cluster.api.answers import Usage, collect
from glm_cluster.api.choices import _Choice
from glm_cluster.api.generations import Prepared, seed_of
from glm_cluster.api.openai import ChatCompletionRequest, CompletionRequest
from glm_cluster.api.reading import Reading
from glm_cluster.api.service import Service
from glm_cluster.errors import InternalError, InvalidRequest
from glm_cluster.metrics import NoMeters
from glm_cluster.records import GenerationRequest, SamplingParams, TokenEvent, TokenLogprobs
from glm_cluster.text.stops import StopStrings
from glm_cluster.text.tools.dialect import Dialect
from glm_cluster.text.tools.tool import Tool

EOS, BEGIN = 256, 257


class Bytes:
    """A tokenizer whose id for a byte is that byte."""

    def to_bytes(self, ids):
        return bytes(id for id in ids if id < 256)


async def answers(service, prompt="a", **fields):
    request = CompletionRequest.parse({"model": "tiny", "prompt": prompt} | fields)
    async with aclosing(service.stream(await service.prepare_completion("r", request))) as deltas:
        return await collect(deltas)


def says(echo, monkeypatch, text, sizes=(), finish="length"):
    """Let the engine say `text`, byte by byte, in events of those sizes and one for the rest."""
    ids = (*text.encode(), EOS) if finish == "stop" else tuple(text.encode())

    async def generate(request):
        echo.open += 1
        try:
            start = 0
            for size in (*sizes, len(ids)):
                if start == len(ids):
                    return
                tokens = ids[start : start + size]
                is_last = start + len(tokens) == len(ids)
                scores = (
                    tuple(TokenLogprobs(-float(token), 1) for token in tokens) if request.sampling.logprobs == 0 else ()
                )
                yield TokenEvent("r", 0, start, tokens, finish if is_last else None, logprobs=scores)
                start += len(tokens)
        finally:
            echo.open -= 1

    monkeypatch.setattr(echo, "generate", generate)


@pytest.mark.parametrize("sizes", [(), (1,) * 9, (2, 3), (4, 1), (5,)])
async def test_a_stop_string_ends_text_tokens_usage_and_logprobs_at_one_token(service, echo, monkeypatch, sizes):
    says(echo, monkeypatch, "hello world", sizes)
    whole = await answers(service, stop=["lo w", "xyz"], logprobs=0)
    (answer,) = whole.choices
    assert (answer.text, answer.finish, answer.stop_reason) == ("hel", "stop", "lo w")
    assert answer.token_ids == tuple(b"hello w")
    assert [place.likelihood.logprob for place in answer.places] == [-float(token) for token in b"hello w"]
    assert whole.usage.num_output_tokens == 7
    assert echo.open == 0


@settings(deadline=None, max_examples=50)
@given(
    st.text("ab漢", min_size=1, max_size=12),
    st.lists(st.text("ab漢", min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.integers(1, 5), max_size=8),
    st.integers(0, 6),
    st.booleans(),
)
def test_any_cut_of_the_output_gives_the_same_answer(text, stops, sizes, min_tokens, include):
    request = GenerationRequest(
        request_id="r", prompt=(1,), sampling=SamplingParams(max_tokens=99, min_tokens=min_tokens)
    )
    prepared = Prepared(
        generations=(request,),
        generator=None,
        tokenizer=Bytes(),
        window=None,
        stops=StopStrings(stops),
        shows_stop=include,
    )

    def run(sizes):
        choice, ids, start, deltas = _Choice(prepared, 0), (*text.encode(), EOS), 0, []
        for size in (*sizes, len(ids)):
            tokens = ids[start : start + size]
            start += len(tokens)
            deltas.append(choice.read(TokenEvent("r", 0, 0, tokens, "stop" if start == len(ids) else None)))
            if deltas[-1].finish is not None:
                return (
                    "".join(delta.text for delta in deltas),
                    tuple(token for delta in deltas for token in delta.token_ids),
                    deltas[-1].stop_reason,
                )
        raise AssertionError("no end")

    assert run(sizes) == run([1] * 99)


GLM4 = Dialect(family="glm4", thinks=False, tools="message", calls="metadata", result_role="observation")


@pytest.mark.parametrize("offered", [(), (Tool(name="now"),)])
@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("\nHello\nworld", "\n", "Hello\n"),
        ("\n\nHello", "\n", "\n"),
        ("\nHello", "\nHel", "Hello"),
        ("\nHello", "llo", "Hello"),
        ("Hello\nworld", "\n", "Hello\n"),
    ],
)
def test_the_line_break_that_is_not_shown_is_part_of_no_stop_string(text, stop, shown, include, offered):
    """It was one with tools: `stop: ["\\n"]` then ended every answer of GLM-4 before its first word."""
    request = GenerationRequest(request_id="r", prompt=(1,), sampling=SamplingParams(max_tokens=99))
    reading = Reading(dialect=GLM4, tools=offered, thinking="before", skip_newline=True)
    prepared = Prepared(
        generations=(request,),
        generator=None,
        tokenizer=SimpleNamespace(to_bytes=Bytes().to_bytes, special_ids={}),
        window=None,
        skip_newline=True,
        stops=StopStrings([stop]),
        shows_stop=include,
        reading=reading if reading.is_needed else None,
    )
    for size in (1, len(text)):
        choice, told = _Choice(prepared, 0), ""
        for start in range(0, len(text), size):
            tokens = tuple(text[start : start + size].encode())
            delta = choice.read(TokenEvent("r", 0, start, tokens, "length" if start + size >= len(text) else None))
            told += delta.text
            if delta.finish is not None:
                break
        stopped = delta.finish == "stop"
        assert told == (shown if include or not stopped else shown.removesuffix(stop))


@pytest.mark.parametrize(("min_tokens", "shown"), [(0, "x"), (2, "x"), (3, "xaby"), (6, "xabyab")])
async def test_a_stop_string_within_the_first_tokens_is_text(service, echo, monkeypatch, min_tokens, shown):
    says(echo, monkeypatch, "xabyab")
    (answer,) = (await answers(service, stop="ab", min_tokens=min_tokens)).choices
    assert answer.text == shown


async def test_what_was_kept_back_is_told_at_the_end(service, echo, monkeypatch):
    says(echo, monkeypatch, "hello", (1,) * 5, finish="stop")
    (answer,) = (await answers(service, stop=["lonely"])).choices
    assert (answer.text, answer.finish, answer.stop_reason) == ("hello", "stop", None)


@pytest.mark.parametrize(("include", "text"), [(False, "hel"), (True, "hello")])
async def test_a_stop_string_is_shown_when_asked_for(service, echo, monkeypatch, include, text):
    says(echo, monkeypatch, "hello world")
    (answer,) = (await answers(service, stop=["lo", "wor"], include_stop_str_in_output=include)).choices
    assert answer.text == text


async def test_an_id_of_the_clients_own_is_the_reason_and_the_models_is_not(service):
    (answer,) = (await answers(service, "ab", stop_token_ids=[ord("a"), EOS])).choices
    assert (answer.text, answer.stop_reason) == ("b", ord("a"))
    (answer,) = (await answers(service, "ab!", stop_token_ids=[EOS])).choices
    assert (answer.text, answer.finish, answer.stop_reason) == ("!ba", "stop", None)
    (answer,) = (await answers(service, "ab!", ignore_eos=True, max_tokens=6)).choices
    assert (answer.text, answer.finish) == ("!baba", "length")


async def test_choices_come_prompt_after_prompt_and_differ_in_their_seeds(service, echo):
    echo.by_seed = True
    whole = await answers(service, ["abc", "de"], n=3, seed=7, max_tokens=4)
    assert [seen.sampling.seed for seen in echo.seen] == [seed_of(7, index) for _ in range(2) for index in range(3)]
    assert [seen.request_id for seen in echo.seen] == [f"r-{index}" for index in range(6)]
    assert [bytes(seen.prompt) for seen in echo.seen] == [b"abc"] * 3 + [b"de"] * 3
    expected = [
        "".join(chr(prompt[-1 - (index + seed_of(7, choice)) % len(prompt)]) for index in range(4))
        for prompt in (b"abc", b"de")
        for choice in range(3)
    ]
    assert [answer.text for answer in whole.choices] == expected
    assert whole.usage == Usage(num_prompt_tokens=5, num_output_tokens=24, num_cached_tokens=2)


def test_seeds_of_choices_are_settled():
    """The same request must bring the same choices after an update of the server too."""
    assert [seed_of(7, index) for index in range(3)] == [7, seed_of(7, 1), seed_of(7, 2)]
    assert len({seed_of(seed, index) for seed in range(20) for index in range(20)}) == 400
    assert all(0 <= seed_of(2**63 - 1, index) < 2**63 for index in range(100))
    assert seed_of(7, 1) == SETTLED


SETTLED = 1919808180182870333


async def test_choices_run_side_by_side_and_closing_ends_them_all(service, echo):
    echo.pause_s = 0.001
    request = CompletionRequest.parse({"model": "tiny", "prompt": "abc", "n": 5})
    async with aclosing(service.stream(await service.prepare_completion("r", request))) as deltas:
        async with asyncio.timeout(5):
            seen = {(await anext(deltas)).index for _ in range(5)}
        assert seen == set(range(5))
        assert echo.open == 5
    assert (echo.open, echo.closed_early) == (0, 5)


async def test_cached_tokens_are_those_that_no_choice_computed(service, echo, monkeypatch):
    async def generate(request):
        index = int(request.request_id[-1])
        yield TokenEvent(request.request_id, 0, 0, (65,), "length", num_cached_tokens=(0, 2, 2, 1)[index])

    monkeypatch.setattr(echo, "generate", generate)
    assert (await answers(service, ["abc", "def"], n=2)).usage.num_cached_tokens == 0 + 1


async def test_a_choice_without_an_end_fails_the_request(service, echo, monkeypatch):
    async def generate(request):
        if request.request_id == "r-1":
            return
        yield TokenEvent(request.request_id, 0, 0, (65,), "length")

    monkeypatch.setattr(echo, "generate", generate)
    with pytest.raises(InternalError):
        await answers(service, n=2)


async def test_tokens_are_told_with_their_names_places_and_alternatives(service):
    (answer,) = (await answers(service, "é!", logprobs=3)).choices
    assert [(place.token_id, place.spelling, place.offset) for place in answer.places] == [
        (33, b"!", 0),
        (0xA9, b"\xa9", 1),
        (0xC3, b"\xc3", 2),
        (EOS, b"<|end|>", 2),
    ]
    assert answer.text == "!\ufffd\ufffd"
    assert [one.spelling for one in answer.places[0].top] == [b"!", b"x", b"<|end|>"]
    assert [one.rank for one in answer.places[0].top] == [1, 2, 3]


async def test_prompts_are_told_of_and_echoed(service):
    (answer,) = (await answers(service, "ab", echo=True, logprobs=1, prompt_logprobs=2, max_tokens=1)).choices
    assert answer.text == "abb"
    assert [(place.offset, place.likelihood and place.likelihood.logprob) for place in answer.places] == [
        (0, None),
        (1, -0.25),
        (2, -0.25),
    ]
    assert [len(place.top) for place in answer.places] == [0, 1, 1]
    assert [len(place.top) for place in answer.prompt_places] == [0, 2]


async def test_a_prompt_is_told_of_with_nothing_after_it(service, echo):
    found = await answers(service, ["ab", "c"], echo=True, logprobs=1, max_tokens=0)
    assert [(answer.text, answer.finish, answer.token_ids) for answer in found.choices] == [
        ("ab", "length", ()),
        ("c", "length", ()),
    ]
    assert [place.offset for place in found.choices[0].places] == [0, 1]
    assert found.usage.num_output_tokens == 0
    assert {one.sampling.max_tokens for one in echo.seen} == {0}


@pytest.mark.parametrize(("asked", "kept"), [(None, None), (-1, None), (0, None), (1, 1), (7, 7)])
async def test_no_top_k_may_be_said_in_numbers(service, echo, asked, kept):
    await answers(service, top_k=asked, max_tokens=1)
    assert echo.seen[0].sampling.top_k == kept


@pytest.mark.parametrize(
    ("fields", "ids"),
    [
        ({}, [BEGIN, *b"ab", EOS]),
        ({"add_special_tokens": True}, [BEGIN, *b"ab", EOS]),
        ({"add_special_tokens": False}, [*b"ab"]),
    ],
)
async def test_a_text_is_framed_as_its_tokenizer_frames_it(service, echo, fields, ids):
    await answers(service, "ab", model="framing", max_tokens=1, **fields)
    assert list(echo.seen[0].prompt) == ids


async def test_token_ids_are_left_alone(service, echo):
    await answers(service, [97, 98], model="framing", max_tokens=1)
    assert list(echo.seen[0].prompt) == [97, 98]


@pytest.mark.parametrize(
    ("most", "max_tokens", "kept"), [(2, None, "bc"), (9, None, "abc"), (-1, 98, "bc"), (-1, None, "abc")]
)
async def test_prompts_are_cut_to_their_last_tokens(service, echo, most, max_tokens, kept):
    await answers(service, "abc", truncate_prompt_tokens=most, max_tokens=max_tokens)
    assert bytes(echo.seen[0].prompt).decode() == kept


async def test_a_prompt_is_cut_to_what_the_server_takes(service, echo):
    tiny = service.model("tiny", "generate")
    bounded = Service(models=[replace(tiny, info=replace(tiny.info, max_prompt_tokens=3))], meters=NoMeters())
    await answers(bounded, "abcdef", truncate_prompt_tokens=-1, max_tokens=1)
    assert bytes(echo.seen[0].prompt) == b"def"


async def test_as_many_tokens_of_a_prompt_as_fit_are_kept(service, echo):
    await answers(service, "x" * 150 + "y", truncate_prompt_tokens=-1)
    assert len(echo.seen[0].prompt) == 99
    assert echo.seen[0].prompt[-1] == ord("y")


async def test_bad_words_are_banned_at_a_words_beginning_and_within(service, echo):
    await answers(service, bad_words=[" ab", "c", "ab"], max_tokens=1)
    assert echo.seen[0].sampling.bad_words == (tuple(b"ab"), tuple(b" ab"), tuple(b"c"), tuple(b" c"))


async def test_a_final_message_is_continued(service, echo):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "so "}]
    request = ChatCompletionRequest.parse({"model": "tiny", "messages": messages, "continue_final_message": True})
    prepared = await service.prepare_chat("r", request)
    assert bytes(prepared.prompts[0]) == b"[user]a[assistant]so "


async def test_who_asks_is_noted(service):
    request = CompletionRequest.parse({"model": "tiny", "prompt": "a", "user": "me", "cache_salt": "s", "priority": -2})
    prepared = await service.prepare_completion("r", request)
    assert prepared.user == "me"
    assert (prepared.generations[0].cache_salt, prepared.generations[0].priority) == ("s", -2)
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "safety_identifier": "me"}
    for fields in ({}, {"user": "me"}):
        assert (await service.prepare_chat("r", ChatCompletionRequest.parse(chat | fields))).user == "me"
    with pytest.raises(InvalidRequest, match="user and safety_identifier differ"):
        ChatCompletionRequest.parse({**chat, "user": "you"})


async def test_more_likelihoods_of_prompts_than_can_be_told_are_refused(service, monkeypatch):
    monkeypatch.setattr("glm_cluster.api.generations.MAX_PROMPT_LIKELIHOODS", 12)
    assert (await answers(service, "abc", prompt_logprobs=3, max_tokens=1)).choices
    with pytest.raises(Exception, match="prompt_logprobs: 3 prompt tokens of all choices x 5"):
        await answers(service, "abc", prompt_logprobs=4, max_tokens=1)
