"""Inputs become prompts, run side by side, and become answers."""

import asyncio
import math
import threading
from dataclasses import replace

import pytest

from glm_cluster.api import encodings
from glm_cluster.api.encodings import classify, classify_tokens, embed
from glm_cluster.api.inputs import ClassifyRequest, ClassifyTokensRequest, EmbeddingRequest
from glm_cluster.api.service import Service
from glm_cluster.errors import EngineUnavailable, InternalError, InvalidRequest, ModelNotFound, Overloaded
from glm_cluster.metrics import NoMeters

BEGIN, END = 257, 256


def embedding(given, **fields):
    return EmbeddingRequest.parse({"model": "mapper", "input": given} | fields)


def labelling(given, model="single", **fields):
    return ClassifyRequest.parse({"model": model, "input": given} | fields)


def tagging(given, model="tagger", **fields):
    return ClassifyTokensRequest.parse({"model": model, "input": given} | fields)


async def test_texts_are_put_between_the_tokenizers_tokens_and_ids_are_left_alone(service, counter):
    await embed(service, embedding("ab"))
    await embed(service, embedding("ab", add_special_tokens=False))
    await embed(service, embedding([97, 98]))
    prompts = [request.prompt for request in counter.seen]
    assert prompts == [(BEGIN, 97, 98, END), (97, 98), (97, 98)]


async def test_control_tokens_in_a_text_are_text(service, counter):
    await embed(service, embedding("<|end|>"))
    assert counter.seen[0].prompt == (BEGIN, *b"<|end|>", END)


@pytest.mark.parametrize(
    ("fields", "vector"),
    [
        ({"normalize": False}, [2, 1, 0]),
        ({"normalize": False, "pooling": "mean"}, [7 / 5, 2 / 5, 0]),
        ({}, [2 / 5**0.5, 1 / 5**0.5, 0]),
        ({"pooling": "mean"}, [7 / 53**0.5, 2 / 53**0.5, 0]),
    ],
)
async def test_vectors_by_hand(service, fields, vector):
    """The rows of `aab` between its control tokens: [0,0,0], [1,0,0], [2,0,0], [2,1,0], [2,1,0]."""
    answers = await embed(service, embedding("aab", **fields))
    assert answers.items[0].tolist() == pytest.approx(vector, rel=1e-6)


async def test_labels_by_hand(service):
    answers = await classify(service, labelling(["aab", "ccccc"]))
    assert [verdict.label for verdict in answers.items] == ["a", "c"]
    e = math.e
    assert answers.items[0].scores == pytest.approx([e**2 / (e**2 + e + 1), e / (e**2 + e + 1), 1 / (e**2 + e + 1)])
    assert answers.items[1].score == pytest.approx(e**5 / (e**5 + 2))


@pytest.mark.parametrize(
    ("ids", "judged"), [((5, 6, 0, 7), 4), ((5, 6, 7, 0), 3), ((5, 0, 0), 1), ((0, 0, 0), 1), ((0, 5), 2)]
)
def test_a_text_is_judged_by_its_last_token_that_is_not_padding(ids, judged):
    """HF's rule: GLM's padding id ends texts too, so it comes in prompts."""
    assert encodings.without_padding(ids, 0) == ids[:judged]
    assert encodings.without_padding(ids, None) == ids


async def test_padding_at_the_end_is_not_judged_and_is_counted(service, counter):
    single = service.model("single", "classify")
    padded = replace(single, info=replace(single.info, pad_token_id=98))
    answers = await classify(Service(models=[padded], meters=NoMeters()), labelling([[97, 98, 99, 98, 98]]))
    assert counter.seen[0].prompt == (97, 98, 99)
    assert answers.usage.num_prompt_tokens == 5


async def test_a_value_by_hand(service):
    (verdict,) = (await classify(service, labelling("banana", "value"))).items
    assert (verdict.label, verdict.score, verdict.scores) == (None, 3.0, [3.0])


async def test_tokens_by_hand(service):
    (tokens,) = (await classify_tokens(service, tagging("xbab", raw_scores=True))).items
    assert list(tokens.ids) == [*b"xbab"]
    assert list(tokens.texts) == ["x", "b", "a", "b"]
    assert list(tokens.spans) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [(v.label, v.score) for v in map(tokens.scores.__getitem__, range(4))] == [
        ("a", 0.0),
        ("b", 1.0),
        ("a", 1.0),
        ("b", 2.0),
    ]


async def test_spans_count_characters(service):
    (tokens,) = (await classify_tokens(service, tagging("é😀a"))).items
    assert list(tokens.spans) == [(0, 1)] * 2 + [(1, 2)] * 4 + [(2, 3)]
    assert list(tokens.texts) == ["é"] * 2 + ["😀"] * 4 + ["a"]


async def test_token_ids_have_no_spans_and_keep_every_row(service):
    (tokens,) = (await classify_tokens(service, tagging([97, END]))).items
    assert (tokens.spans, list(tokens.texts), len(tokens.scores)) == (None, ["a", ""], 2)


async def test_usage_sums_over_inputs(service, tally):
    usage = (await embed(service, embedding(["a", "bcd"]))).usage
    assert (usage.num_prompt_tokens, usage.num_output_tokens, usage.num_cached_tokens) == (3 + 5, 0, 1 + 2)
    tokens = {tags["kind"]: value for name, value, tags in tally.counted if name == "glm_tokens_total"}
    assert tokens == {"prompt": 8, "cached": 3, "output": 0}


@pytest.mark.parametrize(("call", "request_"), [(embed, embedding(["a", "b"])), (classify, labelling(["a", "b"]))])
async def test_every_input_is_a_request_of_its_own(service, counter, call, request_):
    first, second = await call(service, request_), await call(service, request_)
    ids = [request.request_id for request in counter.seen]
    assert len(set(ids)) == 4
    assert {id.rpartition("-")[0] for id in ids} == {first.head.id, second.head.id}


@pytest.mark.parametrize(
    ("call", "request_", "pooling"),
    [
        (embed, embedding("a"), "last"),
        (embed, embedding("a", pooling="mean"), "mean"),
        (classify, labelling("a"), "last"),
        (classify_tokens, tagging("a"), "tokens"),
    ],
)
async def test_the_engine_is_asked_for_no_more_rows_than_needed(service, counter, call, request_, pooling):
    await call(service, request_)
    assert [request.pooling for request in counter.seen] == [pooling]


async def test_inputs_run_side_by_side_and_answers_keep_their_order(service, counter):
    counter.hold = asyncio.Event()
    running = asyncio.create_task(embed(service, embedding(["aa", "b", "ab"], normalize=False)))
    await until(lambda: counter.open == 3)
    counter.hold.set()
    assert [vector.tolist() for vector in (await running).items] == [[2, 0, 0], [0, 1, 0], [1, 1, 0]]


async def test_a_long_list_does_not_fill_the_engines_queues(service, counter, monkeypatch):
    monkeypatch.setattr(encodings, "ABREAST", 3)
    answers = await embed(service, embedding([[97]] * 10))
    assert (len(answers.items), counter.most_open) == (10, 3)


async def test_one_failure_ends_all(service, counter):
    counter.hold = asyncio.Event()
    counter.failures = {ord("!"): EngineUnavailable("gone; try again")}
    with pytest.raises(EngineUnavailable, match="gone"):
        await embed(service, embedding(["a", "b", "!", "c"]))
    assert (counter.open, counter.cancelled) == (0, 3)


async def test_cancelling_the_request_cancels_every_input(service, counter):
    counter.hold = asyncio.Event()
    running = asyncio.create_task(classify(service, labelling(["a", "b"])))
    await until(lambda: counter.open == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (counter.open, counter.cancelled) == (0, 2)


@pytest.mark.parametrize(
    ("given", "words", "param"),
    [
        ("a" * 49, ("input: This model", "length is 50 tokens", "requested 51 tokens"), "input"),
        (["a", "b", "a" * 60, "a" * 99], ("input.2: This model", "requested 62 tokens"), "input.2"),
        ([[1], [1] * 51], ("input.1: This model", "requested 51 tokens"), "input.1"),
        ([1, 260], ("input: no token id 260", "259"), "input"),
        ([[1], [1, 999]], ("input.1: no token id 999",), "input.1"),
    ],
)
async def test_what_can_never_be_answered_is_refused_before_anything_runs(service, counter, given, words, param):
    with pytest.raises(InvalidRequest) as caught:
        await embed(service, embedding(given))
    assert all(word in caught.value.message for word in words), caught.value.message
    assert caught.value.param == param
    assert counter.seen == []


async def test_a_prompt_may_fill_the_model(service):
    assert (await embed(service, embedding("a" * 48))).usage.num_prompt_tokens == 50
    assert (await embed(service, embedding([97] * 50))).usage.num_prompt_tokens == 50


async def test_models_of_another_task_and_no_model_are_refused(service):
    for request, way in ((embedding("a", model="single"), "/v1/classify "), (embedding("a", model="tiny"), "/v1/chat")):
        with pytest.raises(InvalidRequest, match=way):
            await embed(service, request)
    with pytest.raises(InvalidRequest, match="/v1/embeddings"):
        await classify(service, labelling("a", "mapper"))
    with pytest.raises(ModelNotFound, match="'huge'"):
        await classify_tokens(service, tagging("a", "huge"))


@pytest.mark.parametrize(
    ("call", "request_", "rows"),
    [
        (embed, embedding("a"), [[math.nan, 1.0]]),
        (classify, labelling("a"), [[math.inf, 1.0, 2.0]]),
        (classify, labelling("a"), [[1.0, 2.0]]),
        (classify_tokens, tagging("a"), [[1.0, 2.0, 3.0]]),
        (classify_tokens, tagging("a"), [[1.0, 2.0, 3.0], [1.0, -math.inf, 3.0], [1.0, 2.0, 3.0]]),
    ],
)
async def test_a_bad_answer_of_the_engine_is_an_error(service, counter, call, request_, rows):
    counter.rows_instead = rows
    with pytest.raises(InternalError):
        await call(service, request_)


@pytest.mark.parametrize(("length", "elsewhere"), [(10, False), (20_000, True)])
async def test_long_lists_are_checked_off_the_loop(service, monkeypatch, length, elsewhere):
    threads = set()
    original = encodings._check

    def check(*args):
        threads.add(threading.current_thread() is not threading.main_thread())
        original(*args)

    monkeypatch.setattr(encodings, "_check", check)
    monkeypatch.setattr(encodings, "ABREAST", 10_000)
    given = [[97] * 40 for _ in range(length // 10)]
    await embed(service, embedding(given))
    assert (True in threads) is elsewhere


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_list_waits_for_room_and_a_single_input_is_told(service, counter, monkeypatch):
    """A list of inputs fills an engine's queue by itself; that is no reason to refuse it."""
    monkeypatch.setattr(encodings, "_PAUSES_S", (0.0,) * 3)
    full = [Overloaded("full"), Overloaded("full")]
    encode = counter.encode

    async def crowded(request):
        if full:
            raise full.pop()
        return await encode(request)

    monkeypatch.setattr(counter, "encode", crowded)
    answers = await embed(service, embedding(["a", "b", "c"]))
    assert len(answers.items) == 3
    full.append(Overloaded("full"))
    with pytest.raises(Overloaded):
        await embed(service, embedding("a"))
