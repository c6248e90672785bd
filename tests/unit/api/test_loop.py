"""However long a prompt is, the event loop has its turns while it is read, rendered and tokenised.

With GLM-4's own tokenizer and template.
"""

import asyncio
import gzip
import json
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from support.about import server_of

from glm_cluster.api import http
from glm_cluster.api.http import build_http_app
from glm_cluster.api.openai import ChatCompletionRequest, CompletionRequest
from glm_cluster.api.service import ServedModel, Service
from glm_cluster.api.window import EncodeWindow
from glm_cluster.metrics import NoMeters
from glm_cluster.records import GenerationRequest, ModelInfo, TokenEvent
from glm_cluster.text.chat import ChatTemplate
from glm_cluster.text.tokenizer import Tokenizer

SENTENCE = "The ship’s company, 17 hands, went ashore at Reykjavík; nobody spoke. "
LONG = 3_000_000  # characters: the stages must last long enough that a thread beside them is sure to be scheduled


class Turns:
    """The loop's turns, and in which stages of a request the thread that works on it went on between two of them."""

    def __init__(self) -> None:
        self.between: Counter[str] = Counter()
        self.threads: set[threading.Thread] = set()
        self._stage: str | None = None
        self._clock = time.CLOCK_THREAD_CPUTIME_ID

    async def turn(self) -> None:
        last = 0.0
        while True:
            await asyncio.sleep(0)
            if (stage := self._stage) is not None:
                now = time.clock_gettime(self._clock)
                self.between[stage] += now - last > 0.0001
                last = now

    def watch(self, name: str, work: Callable[..., object]) -> Callable[..., object]:
        def watched(*args: object, **options: object) -> object:
            self.threads.add(threading.current_thread())
            self._clock, self._stage = time.pthread_getcpuclockid(threading.get_ident()), name
            try:
                return work(*args, **options)
            finally:
                self._stage = None

        return watched


class One:
    """An engine that answers with one token."""

    def __init__(self) -> None:
        self.prompt: tuple[int, ...] = ()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        self.prompt = request.prompt
        yield TokenEvent(request.request_id, request.attempt, 0, (65,), "length")


@pytest.fixture(scope="module")
def checkpoint(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("glm4")
    packed = (shared_data / "tokenizer/tokenizer.GLM-4-0414.json.gz").read_bytes()
    (directory / "tokenizer.json").write_bytes(gzip.decompress(packed))
    shutil.copy(shared_data / "templates/GLM-4-0414.jinja", directory / "chat_template.jinja")
    return directory


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_directory(checkpoint)


@pytest.fixture
def engine() -> One:
    return One()


@pytest.fixture
def turns() -> Turns:
    return Turns()


@pytest.fixture
def short_turns() -> Iterator[None]:
    """As the ingress has them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
async def client(
    checkpoint: Path, tokenizer: Tokenizer, engine: One, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    template, window = ChatTemplate.from_directory(checkpoint, tokenizer), EncodeWindow(tokenizer, NoMeters())
    info = ModelInfo(name="glm", vocab_size=200_000, max_model_len=8 << 20, eos_token_ids=(1,))
    model = ServedModel(info=info, tokenizer=tokenizer, template=template, window=window, generator=engine)
    monkeypatch.setattr(http, "decode_json", turns.watch("decode", http.decode_json))
    for body in (ChatCompletionRequest, CompletionRequest):
        monkeypatch.setattr(body, "parse", turns.watch("parse", body.parse))
    monkeypatch.setattr(template, "render", turns.watch("render", template.render))
    monkeypatch.setattr(tokenizer, "encode_batch", turns.watch("encode", tokenizer.encode_batch))

    app = build_http_app(Service(models=[model], meters=NoMeters()), server_of([model.info]), NoMeters())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        turning = asyncio.create_task(turns.turn())
        yield client
        turning.cancel()
    window.close()


def conversation(num_messages: int) -> list[dict[str, str]]:
    text = SENTENCE * (LONG // num_messages // len(SENTENCE))
    return [{"role": ("user", "assistant")[i % 2], "content": f"{i} {text}"} for i in range(num_messages)]


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize(
    ("path", "prompt", "stages"),
    [
        ("/v1/completions", {"prompt": SENTENCE * (LONG // len(SENTENCE))}, {"encode"}),
        ("/v1/completions", {"prompt": [*range(100_000, 150_000)] * 10}, {"decode", "parse"}),
        ("/v1/chat/completions", {"messages": conversation(1)}, {"render", "encode"}),
        ("/v1/chat/completions", {"messages": conversation(501)}, {"render", "encode"}),
    ],
    ids=["text", "ids", "one message", "many messages"],
)
async def test_the_loop_has_its_turns_while_megabytes_are_worked_through(
    client: httpx.AsyncClient, turns: Turns, engine: One, path: str, prompt: dict[str, object], stages: set[str]
):
    body = json.dumps({"model": "glm", "max_tokens": 1, **prompt}).encode()
    for _ in range(5):  # on a busy machine the loop may have to wait for a core instead
        turns.between.clear()
        response = await client.post(path, content=body)
        assert response.status_code == 200, response.text
        assert len(engine.prompt) >= 400_000
        assert threading.main_thread() not in turns.threads
        if {name for name, number in turns.between.items() if number > 2} >= stages:  # one long call makes it 2
            return
    pytest.fail(f"the loop had its turns only so often: {turns.between}")
