"""What both wires rest on."""

import asyncio
import threading
from collections import namedtuple
from contextlib import aclosing
from dataclasses import replace

import pytest

from glm_cluster.api.answers import collect
from glm_cluster.api.openai import ChatCompletionRequest, CompletionRequest
from glm_cluster.api.service import Service
from glm_cluster.errors import ConfigError, InternalError, InvalidRequest, ModelNotFound
from glm_cluster.metrics import NoMeters
from glm_cluster.records import TokenEvent


def completion(prompt, **fields):
    return CompletionRequest.parse({"model": "tiny", "prompt": prompt} | fields)


Whole = namedtuple("Whole", "text token_ids finish usage")


async def whole(service, request):
    async with aclosing(service.stream(await service.prepare_completion("r", request))) as deltas:
        answers = await collect(deltas)
    (answer,) = answers.choices
    return Whole(answer.text, answer.token_ids, answer.finish, answers.usage)


async def test_chat_is_rendered_and_parts_are_joined(service):
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "y"}]
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": parts}]
    request = ChatCompletionRequest.parse({"model": "tiny", "messages": messages})
    generation = (await service.prepare_chat("r", request)).generations[0]
    assert bytes(generation.prompt) == b"[system][user]hey[a]"


async def test_stop_token_is_counted_and_not_shown(service):
    answer = await whole(service, completion("abc!"))
    assert answer.text == "!cba"
    assert answer.finish == "stop"
    assert answer.token_ids == (*b"!cba", 256)
    assert (answer.usage.num_prompt_tokens, answer.usage.num_output_tokens, answer.usage.num_cached_tokens) == (4, 5, 2)


async def test_a_clients_own_stop_id_ends_the_answer(service):
    answer = await whole(service, completion("abc", stop_token_ids=[ord("b")]))
    assert (answer.text, answer.finish) == ("c", "stop")


async def test_max_tokens_defaults_to_what_the_model_has_left(service):
    answer = await whole(service, completion("a" * 90))
    assert (answer.finish, answer.usage.num_output_tokens) == ("length", 10)


async def test_characters_are_never_split(service):
    """The answer is the prompt's bytes backwards, so the client spells the characters backwards to get them whole."""
    prompt = list(reversed("é漢😀".encode()))
    generation = await service.prepare_completion("r", completion(prompt, max_tokens=9))
    async with aclosing(service.stream(generation)) as deltas:
        texts = [delta.text async for delta in deltas]
    assert texts == ["", "é", "", "", "漢", "", "", "", "😀"]


async def test_a_character_cut_by_the_limit_is_marked(service):
    prompt = list(reversed("漢".encode()))
    answer = await whole(service, completion(prompt, max_tokens=2))
    assert answer.text == "\ufffd"


async def test_seeds_are_drawn_afresh_unless_given(service):
    drawn = {(await service.prepare_completion("r", completion("a"))).generations[0].sampling.seed for _ in range(5)}
    assert len(drawn) == 5
    assert all(0 <= seed < 2**63 for seed in drawn)
    assert (await service.prepare_completion("r", completion("a", seed=7))).generations[0].sampling.seed == 7


@pytest.mark.parametrize("sizes", [(6, 4), (10,), (1, 3, 6), (3, 0, 7)])
async def test_tokens_may_come_several_at_a_time(service, echo, monkeypatch, sizes):
    """A step that guessed right brings more than one; characters then end anywhere in it, and so does the answer."""
    ids = (*"é漢😀".encode(), 256)

    async def generate(request):
        start = 0
        for size in sizes:
            end = start + size
            finish = "stop" if end == len(ids) else None
            yield TokenEvent(request.request_id, request.attempt, start, ids[start:end], finish)
            start = end

    monkeypatch.setattr(echo, "generate", generate)
    answer = await whole(service, completion("a"))
    assert (answer.text, answer.token_ids, answer.usage.num_output_tokens) == ("é漢😀", ids, 10)


async def test_sampling_reaches_the_engine(service):
    fields = {"temperature": 0, "top_k": 3, "top_p": 0.5, "min_p": 0.25, "stop_token_ids": [9, 256], "max_tokens": 4}
    sampling = (await service.prepare_completion("r", completion("a", **fields))).generations[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0, 3, 0.5, 0.25)
    assert (sampling.stop_token_ids, sampling.max_tokens) == ((256, 9), 4)


@pytest.mark.parametrize(
    ("fields", "words", "param"),
    [
        ({"prompt": "a" * 100}, ("100 in the prompt", "length is 100 tokens"), "prompt"),
        (
            {"prompt": "a" * 90, "max_tokens": 11},
            ("90 in the prompt", "11 in the completion", "is 100 tokens", "10 tokens at most"),
            "prompt",
        ),
        ({"prompt": [1, 260]}, ("260", "259"), "prompt"),
        ({"prompt": "a", "stop_token_ids": [5, 999]}, ("999", "259"), "stop_token_ids"),
    ],
)
async def test_what_can_never_fit_is_refused_with_the_numbers(service, fields, words, param):
    with pytest.raises(InvalidRequest) as caught:
        await service.prepare_completion("r", completion(**fields))
    assert all(word in caught.value.message for word in words), caught.value.message
    assert caught.value.param == param


async def test_another_model_is_not_found(service):
    with pytest.raises(ModelNotFound, match=r"'tiny', 'single', .*'framing'"):
        await service.prepare_completion("r", completion("a", model="huge"))


@pytest.mark.parametrize(
    ("name", "way"),
    [("single", "POST /v1/classify "), ("tagger", "/v1/classify_tokens "), ("mapper", "/v1/embeddings ")],
)
async def test_a_model_of_another_task_is_refused_with_the_way_to_ask_it(service, name, way):
    with pytest.raises(InvalidRequest, match=way) as caught:
        await service.prepare_completion("r", completion("a", model=name))
    assert caught.value.param == "model"


async def test_a_model_without_a_template_answers_no_conversations(service, monkeypatch):
    monkeypatch.setitem(service._models, "tiny", replace(service.model("tiny", "generate"), template=None))
    request = ChatCompletionRequest.parse({"model": "tiny", "messages": [{"role": "user", "content": "a"}]})
    with pytest.raises(InvalidRequest, match="/v1/completions"):
        await service.prepare_chat("r", request)
    assert (await whole(service, completion("a", max_tokens=1))).text == "a"


async def test_models_of_one_name_are_refused(service, tally):
    tiny = service.model("tiny", "generate")
    for models in ([], [tiny, tiny]):
        with pytest.raises(ConfigError, match="different names"):
            Service(models=models, meters=tally)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "embed"}, "nothing runs its task 'embed'"),
        ({"task": "classify"}, "nothing runs its task 'classify'"),
    ],
)
async def test_a_model_that_nothing_runs_is_refused(service, changes, words):
    tiny = service.model("tiny", "generate")
    with pytest.raises(ConfigError, match=words):
        replace(tiny, info=replace(tiny.info, **changes))


@pytest.mark.parametrize(("labels", "words"), [((), "needs labels"), (("a", "b", "a"), r"\['a'\] stand twice")])
async def test_labels_must_tell_classes_apart(service, labels, words):
    single = service.model("single", "classify")
    with pytest.raises(ConfigError, match=words):
        replace(single, info=replace(single.info, labels=labels))


async def test_closing_the_stream_closes_the_engines(service, echo):
    generation = await service.prepare_completion("r", completion("abc"))
    async with aclosing(service.stream(generation)) as deltas:
        await anext(deltas)
        assert echo.open == 1
    assert (echo.open, echo.closed_early) == (0, 1)


@pytest.mark.parametrize("events", [[], [TokenEvent("r", 0, 0, (65,))], [TokenEvent("r", 0, 0, (65,), "cancelled")]])
async def test_a_stream_without_a_proper_end_is_an_error(service, monkeypatch, echo, events):
    async def generate(request):
        for event in events:
            yield event

    monkeypatch.setattr(echo, "generate", generate)
    with pytest.raises(InternalError):
        await whole(service, completion("a"))


async def test_tokens_are_counted_and_timed(service, tally):
    await whole(service, completion("abc!"))
    tokens = {tags["kind"]: value for name, value, tags in tally.counted if name == "glm_tokens_total"}
    assert tokens == {"prompt": 4, "cached": 2, "output": 5}
    names = [name for name, _ in tally.observed]
    assert (names.count("glm_time_to_first_token_seconds"), names.count("glm_inter_token_seconds")) == (1, 4)


async def test_the_loop_is_free_while_a_prompt_is_tokenised(service, monkeypatch):
    """Tokenising happens on another thread: the loop turns while it lasts."""
    turned = threading.Event()

    async def turn():
        for _ in range(6):
            await asyncio.sleep(0.001)
        turned.set()

    threads = set()
    tokenizer = service.model("tiny", "generate").tokenizer
    original = tokenizer.encode_batch

    def slow(texts):
        threads.add(threading.current_thread())
        assert turned.wait(60)
        return original(texts)

    monkeypatch.setattr(tokenizer, "encode_batch", slow)
    turning = asyncio.create_task(turn())
    await service.prepare_completion("r", completion("a"))
    await turning
    assert threading.main_thread() not in threads


@pytest.mark.parametrize(("length", "elsewhere"), [(10, False), (200_000, True)])
async def test_long_conversations_are_worked_through_off_the_loop(http, service, monkeypatch, length, elsewhere):
    """Parsing and rendering megabytes on the event loop once held every stream up for seconds."""
    parsing, rendering = [], []
    template = service.model("tiny", "generate").template
    parse, render = ChatCompletionRequest.parse, template.render

    def parse_seen(raw):
        parsing.append(threading.current_thread())
        return parse(raw)

    def render_seen(messages, **options):
        rendering.append(threading.current_thread())
        return render(messages, **options)

    monkeypatch.setattr(ChatCompletionRequest, "parse", parse_seen)
    monkeypatch.setattr(template, "render", render_seen)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a" * length}]}
    await http.post("/v1/chat/completions", json=body)
    for [thread] in (parsing, rendering):
        assert (thread is not threading.main_thread()) is elsewhere


@pytest.fixture
def limited(service):
    """The same model under a server's settings."""
    model = service.model("tiny", "generate")
    info = replace(model.info, max_prompt_tokens=5, max_output_tokens=7)
    return Service(models=[replace(model, info=info)], meters=NoMeters())


async def test_a_server_s_limits_are_below_the_model_s(limited):
    generation = (await limited.prepare_completion("r", completion("a" * 5))).generations[0]
    assert generation.sampling.max_tokens == 7
    for fields, param in ({"prompt": "a" * 6}, "prompt"), ({"prompt": "a", "max_tokens": 8}, "max_tokens"):
        with pytest.raises(InvalidRequest, match="this server") as caught:
            await limited.prepare_completion("r", completion(**fields))
        assert (caught.value.param, caught.value.code) == (param, "invalid_request")
    with pytest.raises(InvalidRequest, match="min_tokens: 8 is more than the 7 that may come") as caught:
        await limited.prepare_completion("r", completion("a", min_tokens=8))
    assert caught.value.code == "invalid_request"
