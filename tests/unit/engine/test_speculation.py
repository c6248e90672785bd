"""Tokens are those of a run without drafts: whatever is drafted, batched, chunked, preempted, cached or re-entered."""

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import pytest
from support.engines import drain, drain_events, mixed_requests

from glm_cluster.config import EngineConfig
from glm_cluster.engine import sequence
from glm_cluster.engine.blocks import BlockPool
from glm_cluster.engine.engine import Engine, open_engine
from glm_cluster.engine.lookup import PromptLookup
from glm_cluster.engine.plan import StepOutput, StepPlan
from glm_cluster.engine.scheduler import DRAFT_ROWS, Scheduler
from glm_cluster.records import GenerationRequest, SamplingParams

BLOCK_TOKENS = 4
STOP = 1
Ids = tuple[int, ...]


def next_token(tokens: Sequence[int], seed: int) -> int:
    """A language of loops: most tokens follow from the two before, some from everything, as with a real model."""
    seen = tokens if crc32(bytes(tokens)) % 9 == 0 else tokens[-2:]
    return 1 + crc32(bytes([*seen, seed % 256])) % 6


def undisturbed(request: GenerationRequest, seed: int | None = None) -> Ids:
    """The whole output by the language alone."""
    tokens, sampling = [*request.prompt], request.sampling
    while len(tokens) < len(request.prompt) + sampling.max_tokens:
        tokens.append(next_token(tokens, sampling.seed if seed is None else seed))
        if tokens[-1] in sampling.stop_token_ids:
            break
    return tuple(tokens[len(request.prompt) :])


class PaperModel:
    """An executor whose KV cache holds token ids: a token follows from what is read back through the block table."""

    def __init__(self) -> None:
        self.plans: list[StepPlan] = []
        self._slots: dict[tuple[int, int], int] = {}

    def execute(self, plan: StepPlan) -> StepOutput:
        assert StepPlan.unpack(plan.pack()) == plan
        self.plans.append(plan)
        for part in plan.slices:
            for at, token in enumerate(part.tokens, part.start):
                self._slots[part.blocks[at // BLOCK_TOKENS], at % BLOCK_TOKENS] = token
        sampled: dict[str, Ids] = {}
        for part in plan.slices:
            if part.past is not None and part.samples:
                end = part.start + len(part.tokens)
                context = [self._slots[part.blocks[at // BLOCK_TOKENS], at % BLOCK_TOKENS] for at in range(end)]
                rows = [next_token(context[:e], part.past.sampling.seed) for e in range(end - part.num_drafts, end + 1)]
                wrong = [i for i, draft in enumerate(part.drafts) if rows[i] != draft]
                sampled[part.key] = tuple(rows[: 1 + min(wrong, default=part.num_drafts)])
        return StepOutput(sampled)

    @property
    def num_drafted(self) -> int:
        return sum(part.num_drafts for plan in self.plans for part in plan.slices)


class Fickle(PaperModel):
    """One step in four fails before it has written anything."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self.num_failed = 0

    def execute(self, plan: StepPlan) -> StepOutput:
        if self._rng.random() < 0.25:
            self.num_failed += 1
            raise ConnectionError
        return super().execute(plan)


def paper_engine(model: PaperModel, *, drafts: int, num_blocks: int = 64, **changes: int) -> Engine:
    settings = {"max_running": 8, "step_tokens": 32, **changes}
    scheduler = Scheduler(
        BlockPool(num_blocks + 1),
        block_tokens=BLOCK_TOKENS,
        max_waiting=1000,
        max_model_len=num_blocks * BLOCK_TOKENS,
        speculative_tokens=drafts,
        **settings,
    )
    return Engine(scheduler, model, "generate")


def paper_requests(rng: random.Random, count: int, *, longest: int = 30) -> list[GenerationRequest]:
    """Prompts of a small alphabet, some of them shared; some ask for fewer drafts or none."""
    shared = [rng.randrange(2, 7) for _ in range(longest)]
    return [
        GenerationRequest(
            request_id=f"r{i}",
            prompt=(*shared[: rng.randrange(longest - 5)], *(rng.randrange(2, 7) for _ in range(rng.randrange(1, 5)))),
            sampling=SamplingParams(
                max_tokens=rng.randrange(1, 40),
                seed=rng.randrange(3),
                stop_token_ids=rng.choice([(), (STOP,), (STOP, 3)]),
            ),
            max_drafts=rng.choice([None, None, None, 0, 1, 99]),
        )
        for i in range(count)
    ]


SHAPES = {
    "wide": {},
    "alone": {"max_running": 1},
    "chunked": {"step_tokens": 5, "max_running": 3},
    "tight": {"num_blocks": 20, "step_tokens": 9, "max_running": 5},
}


@pytest.mark.parametrize("drafts", [1, 4, 7, 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_are_the_languages_own(shape: str, drafts: int) -> None:
    model, requests = PaperModel(), paper_requests(random.Random(f"{shape} {drafts}"), 30)
    engine = paper_engine(model, drafts=drafts, **SHAPES[shape])
    expected = {request.request_id: undisturbed(request) for request in requests}
    assert drain(engine, requests) == expected
    assert drain(engine, requests) == expected  # once more, from a warm cache
    load = engine.load()
    assert 0 < load.num_accepted < load.num_drafted == model.num_drafted
    assert load.num_free_blocks == load.num_blocks


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_are_the_languages_own_where_steps_fail(shape: str) -> None:
    """What a failed step was to write, nobody reads, also not those who were to share it in that step."""
    rng = random.Random(f"{shape} fails")
    model, requests = Fickle(rng), paper_requests(rng, 30)
    engine = paper_engine(model, drafts=4, **SHAPES[shape])
    for request in requests:
        engine.add(request)
    made: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while engine.has_work:
        with contextlib.suppress(ConnectionError):
            for event in engine.step():
                made[event.request_id] += event.tokens
            engine.check()
    assert {name: tuple(ids) for name, ids in made.items()} == {r.request_id: undisturbed(r) for r in requests}
    assert model.num_failed > 5


def test_fewer_steps_where_a_text_repeats_itself() -> None:
    request = GenerationRequest(request_id="r", prompt=(2, 3, 4), sampling=SamplingParams(max_tokens=150))
    steps = []
    for drafts in (0, 7):
        engine = paper_engine(PaperModel(), drafts=drafts)
        assert drain(engine, [request])["r"] == undisturbed(request)
        steps.append(engine.num_steps)
        assert steps[-1] + engine.load().num_accepted == 150
    assert steps[0] == 150
    assert steps[1] < 100


def test_reentry_at_any_point_goes_on_as_before() -> None:
    (request,) = paper_requests(random.Random(5), 1)
    request = replace(request, sampling=SamplingParams(max_tokens=60, stop_token_ids=()), max_drafts=None)
    whole = undisturbed(request)
    parts = [replace(request, request_id=f"{k}", output=whole[:k]) for k in range(61)]
    model = PaperModel()
    tails = drain(paper_engine(model, drafts=7), parts)
    assert [whole[:k] + tails[f"{k}"] for k in range(61)] == [whole] * 61
    assert model.num_drafted > 0


@pytest.mark.parametrize("end", range(1, 30))
def test_a_stop_or_the_longest_output_inside_right_drafts_cuts_them(end: int) -> None:
    """The drafts are the output to come, so that one runs over every end."""
    free = GenerationRequest(request_id="r", prompt=(3,), sampling=SamplingParams(max_tokens=30))
    whole = undisturbed(free)
    prophet = Prophet([(*free.prompt, *whole)], random.Random(0), right=1.0)
    cut = replace(free, sampling=replace(free.sampling, max_tokens=end))
    stopped = replace(free, sampling=replace(free.sampling, stop_token_ids=(whole[end - 1],)))
    for request, finish in ((cut, "length"), (stopped, "stop")):
        engine = paper_engine(PaperModel(), drafts=7)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sequence, "PromptLookup", lambda: prophet)
            events = drain_events(engine, [request])["r"]
        length = end if finish == "length" else whole.index(whole[end - 1]) + 1
        assert tuple(t for e in events for t in e.tokens) == whole[:length]
        assert [e.start for e in events] == [sum(len(e.tokens) for e in events[:i]) for i in range(len(events))]
        assert events[-1].finish == finish
        assert len(events) == -(-length // 8)


def test_who_asks_for_no_drafts_gets_none_and_nobody_more_than_asked() -> None:
    model, requests = PaperModel(), paper_requests(random.Random(8), 30)
    drain(paper_engine(model, drafts=7, max_running=1), requests)
    asked = {f"{r.request_id}#0": r.max_drafts for r in requests}
    most: dict[int | None, int] = {}
    for plan in model.plans:
        for part in plan.slices:
            most[asked[part.key]] = max(most.get(asked[part.key], 0), part.num_drafts)
    assert most == {0: 0, 1: 1, 99: 7, None: 7}


@pytest.mark.parametrize("seed", range(6))
def test_drafts_take_only_what_is_left_of_a_step(seed: int) -> None:
    """Of its budget, and of the rows that cost little. The others' known tokens are those of a plan without drafts."""
    rng = random.Random(seed)
    model = PaperModel()
    engine = paper_engine(model, drafts=7, step_tokens=rng.choice([6, 12, 40]), max_running=6)
    requests = paper_requests(rng, 25)
    drain(engine, requests)
    for plan in model.plans:
        rows = sum(len(part.tokens) for part in plan.slices)
        drafts = sum(part.num_drafts for part in plan.slices)
        assert drafts == 0 or rows <= min(DRAFT_ROWS, engine._scheduler._step_tokens)


def test_what_room_there_is_for_drafts_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two guess wrong and lose their trust; the third has all the room then."""
    model = PaperModel()
    engine = paper_engine(model, drafts=9)
    monkeypatch.setattr(PromptLookup, "draft", lambda self, tokens, most: (7,) * most)
    for name in "abc":
        engine.add(GenerationRequest(request_id=name, prompt=(2, 3), sampling=SamplingParams(max_tokens=30)))
    engine.step()
    engine.step()
    assert [[part.num_drafts for part in plan.slices] for plan in model.plans] == [[1, 1, 0], [0, 0, 5]]


@pytest.mark.parametrize(
    ("num_others", "is_trusted", "drafts"),
    [(0, True, 7), (4, True, 3), (6, True, 1), (7, True, 0), (9, True, 0), (0, False, 3), (2, False, 1), (3, False, 0)],
)
def test_guesses_ride_in_rows_that_cost_little_and_more_where_the_last_was_right(
    num_others: int, is_trusted: bool, drafts: int
) -> None:
    model = PaperModel()
    engine = paper_engine(model, drafts=9, max_running=20)
    loop = GenerationRequest(request_id="loop", prompt=(2, 3), sampling=SamplingParams(max_tokens=30))
    others = [replace(loop, request_id=f"{i}", prompt=(9 + i,), max_drafts=0) for i in range(num_others)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromptLookup, "draft", lambda self, tokens, most: (7,) * most)
        patch.setattr(PromptLookup, "is_trusted", is_trusted)
        for request in (loop, *others):
            engine.add(request)
        engine.step()
        engine.step()
    assert [part.num_drafts for part in model.plans[1].slices] == [drafts] + [0] * num_others


def test_a_draft_takes_no_block_that_somebody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PaperModel()
    engine = paper_engine(model, drafts=7, num_blocks=4)
    monkeypatch.setattr(PromptLookup, "draft", lambda self, tokens, most: (7,) * most)
    long, short = (tuple(range(2, 2 + n)) for n in (9, 3))  # three blocks of four slots, and one with a slot to spare
    engine.add(GenerationRequest(request_id="b", prompt=long, sampling=SamplingParams(max_tokens=3), max_drafts=0))
    engine.step()
    engine.add(GenerationRequest(request_id="a", prompt=short, sampling=SamplingParams(max_tokens=9)))
    engine.step()
    engine.check()
    assert [(len(part.blocks), part.num_drafts) for part in model.plans[1].slices] == [(3, 0), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_wrong_drafts_change_nothing_for_anybody(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known tokens are computed in the steps, and preemptions happen in the steps, of a run without drafts.

    Without a prefix cache, of which drafts may take the oldest block a few steps early.
    """
    monkeypatch.setattr(BlockPool, "publish", lambda self, block, name: None)
    requests = paper_requests(random.Random(shape), 30)
    requests = [replace(request, prompt=(2 + i, 32 + i, *request.prompt)) for i, request in enumerate(requests)]
    wholes = [(*request.prompt, *undisturbed(request)) for request in requests]
    prophet = Prophet(wholes, random.Random(1), right=0.0)
    monkeypatch.setattr(sequence, "PromptLookup", lambda: prophet)
    known = []
    for drafts in (0, 5):
        model = PaperModel()
        engine = paper_engine(model, drafts=drafts, **SHAPES[shape])
        drain(engine, requests)
        known.append([[(part.key, part.start, part.num_known) for part in plan.slices] for plan in model.plans])
        assert (engine.load().num_drafted > 0) == (drafts > 0)
        assert engine.load().num_accepted == 0
    assert known[0] == known[1]


class Prophet(PromptLookup):
    """Drafts what is to come, each token of it `right` with that probability."""

    def __init__(self, wholes: Sequence[Ids], rng: random.Random, *, right: float) -> None:
        super().__init__()
        self._wholes, self._rng, self._right = wholes, rng, right

    def draft(self, tokens: Sequence[int], most: int) -> Ids:
        seen = tuple(tokens)
        rest = next((whole[len(seen) :] for whole in self._wholes if whole[: len(seen)] == seen), ())
        return tuple(t if self._rng.random() < self._right else 2 + t % 5 for t in rest[:most])


@pytest.fixture(scope="module")
def plain(checkpoint: Callable[..., Path]) -> Callable[[str], dict[str, Ids]]:
    """The ids of the mix without speculation."""
    made: dict[str, dict[str, Ids]] = {}

    def run(dtype: str) -> dict[str, Ids]:
        if dtype not in made:
            engine = open_engine(EngineConfig(model=str(checkpoint()), dtype=dtype, speculative_tokens=0))
            made[dtype] = drain(engine, mixed_requests(12, vocab_size=301))
            assert engine.load().num_drafted == 0
        return made[dtype]

    return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape", [{"max_running": 2}, {"step_tokens": 9, "max_running": 2}, {"max_running": 1, "block_tokens": 8}], ids=str
)
def test_a_real_model_keeps_its_tokens(
    checkpoint: Callable[..., Path],
    plain: Callable[[str], dict[str, Ids]],
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    shape: dict[str, int],
) -> None:
    """Greedy and seeded, with drafts of which two in three tokens are right: many lengths are accepted."""
    requests = mixed_requests(12, vocab_size=301)
    wholes = [(*request.prompt, *plain(dtype)[request.request_id]) for request in requests]
    prophet = Prophet(wholes, random.Random(1), right=0.7)
    monkeypatch.setattr(sequence, "PromptLookup", lambda: prophet)
    engine = open_engine(EngineConfig(model=str(checkpoint()), dtype=dtype, **shape))
    events = drain_events(engine, requests)
    assert {n: tuple(t for e in some for t in e.tokens) for n, some in events.items()} == plain(dtype)
    assert {len(e.tokens) for some in events.values() for e in some} >= {1, 2, 3, 4}
