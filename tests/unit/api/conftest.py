"""A service over arithmetic engines: what they answer is a function of the prompt alone."""

import asyncio
import contextlib
import inspect
import json
import math
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2_grpc
from support.about import WellServer, server_of

from glm_cluster.api.desk import GrammarDesk
from glm_cluster.api.grpc import GlmGrpc
from glm_cluster.api.http import build_http_app
from glm_cluster.api.proto import glm_pb2_grpc
from glm_cluster.api.server import Server
from glm_cluster.api.service import ServedModel, Service
from glm_cluster.api.servicer import add_glm_to_server
from glm_cluster.api.window import EncodeWindow
from glm_cluster.errors import GlmError
from glm_cluster.metrics import Metric, NoMeters
from glm_cluster.records import (
    Encoded,
    EncodeRequest,
    FinishReason,
    GenerationRequest,
    ModelInfo,
    TokenEvent,
    TokenLogprobs,
)
from glm_cluster.text.chat import ChatTemplate
from glm_cluster.text.tokenizer import Tokenizer

EOS = 256
BEGIN = 257
VOCAB = 260
LABELS = ("a", "b", "c")
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


@dataclass
class Echo:
    """An engine that says the prompt backwards, byte by byte, over and over.

    A prompt that holds `!` stops after one round; one that holds `~` fails with `error` after two tokens. `at_once`
    tokens come in one event. With `by_seed` it begins at another place, which the seed decides.
    """

    error: GlmError | None = None
    pause_s: float = 0.0
    at_once: int = 1
    by_seed: bool = False
    open: int = 0  # streams neither ended nor closed
    closed_early: int = 0
    seen: list[GenerationRequest] = field(default_factory=list)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        self.seen.append(request)
        self.open += 1
        finished = False
        try:
            most, tokens = request.sampling.max_tokens, ()
            if not most:
                finished = True
                yield self.event(request, (), 0, "length")
            for index in range(most):
                if not tokens:
                    await asyncio.sleep(self.pause_s)
                if self.error is not None and ord("~") in request.prompt and index == 2:
                    raise self.error
                token = self.token(request.prompt, index + self.by_seed * request.sampling.seed)
                tokens += (token,)
                reason = "stop" if token in request.sampling.stop_token_ids else None
                reason = reason or ("length" if index + 1 == most else None)
                finished = reason is not None
                if finished or len(tokens) == self.at_once:
                    yield self.event(request, tokens, index + 1 - len(tokens), reason)
                    tokens = ()
                if finished:
                    return
        finally:
            self.open -= 1
            self.closed_early += not finished

    def event(
        self, request: GenerationRequest, tokens: tuple[int, ...], start: int, reason: FinishReason | None
    ) -> TokenEvent:
        asked = request.sampling
        of_prompt: tuple[TokenLogprobs | None, ...] = ()
        if start == 0 and asked.prompt_logprobs is not None:
            of_prompt = (None, *(logprobs(token, asked.prompt_logprobs) for token in request.prompt[1:]))
        return TokenEvent(
            request.request_id,
            request.attempt,
            start,
            tokens,
            reason,
            len(request.prompt) // 2,
            logprobs=() if asked.logprobs is None else tuple(logprobs(token, asked.logprobs) for token in tokens),
            prompt_logprobs=of_prompt,
        )

    @staticmethod
    def token(prompt: tuple[int, ...], index: int) -> int:
        if index == len(prompt) and ord("!") in prompt:
            return EOS
        return prompt[-1 - index % len(prompt)]


def logprobs(token: int, num_top: int) -> TokenLogprobs:
    """What Echo says of a token: a function of the token, and of its place in the alphabet of ids."""
    top = ((token, -0.25), (ord("x"), -1.5), (EOS, -3.0), (200, -math.inf))
    return TokenLogprobs(-0.25, 1, top[:num_top])


@dataclass
class Count:
    """An encoder whose row for a token says how often each of `letters` stands in the prompt up to that token.

    `failures` holds the errors of prompts that have such an id in them. `hold` keeps all inside until it is set.
    """

    letters: str = "abc"
    failures: dict[int, BaseException] = field(default_factory=dict)
    hold: asyncio.Event | None = None
    open: int = 0
    most_open: int = 0
    cancelled: int = 0
    seen: list[EncodeRequest] = field(default_factory=list)
    rows_instead: list[list[float]] | None = None

    async def encode(self, request: EncodeRequest) -> Encoded:
        self.seen.append(request)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(0)
            for id, error in self.failures.items():
                if id in request.prompt:
                    raise error
            if self.hold is not None:
                await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.open -= 1
        rows = self.rows_instead or self.rows(request)
        values = b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)
        return Encoded(len(rows), len(rows[0]), values, num_cached_tokens=len(request.prompt) // 2)

    def rows(self, request: EncodeRequest) -> list[list[float]]:
        prompt = request.prompt
        counts = [
            [float(prompt[: end + 1].count(ord(letter))) for letter in self.letters] for end in range(len(prompt))
        ]
        match request.pooling:
            case "tokens":
                return counts
            case "last":
                return counts[-1:]
            case "mean":
                return [[sum(column) / len(counts) for column in zip(*counts, strict=True)]]


class Tally(NoMeters):
    """Keeps what was counted and observed."""

    def __init__(self) -> None:
        self.counted: list[tuple[str, float, dict[str, str]]] = []
        self.observed: list[tuple[str, float]] = []

    def count(self, metric: Metric, value: float, tags: dict[str, str] | None = None) -> None:
        assert set(tags or {}) == set(metric.tag_keys)
        self.counted.append((metric.name, value, dict(tags or {})))

    def observe(self, metric: Metric, value: float, tags: dict[str, str] | None = None) -> None:
        assert set(tags or {}) == set(metric.tag_keys)
        self.observed.append((metric.name, value))


def byte_characters() -> list[str]:
    """GPT-2's alphabet: the printable character that stands for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


FRAME = {EOS: "<|end|>", BEGIN: "<|begin|>"}


def _special(content: str) -> dict[str, object]:
    return {"SpecialToken": {"id": content, "type_id": 0}}


@pytest.fixture(scope="session")
def byte_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose id for a byte is that byte, put between two control tokens, and a template to be read."""
    path = tmp_path_factory.mktemp("bytes")
    content = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": id,
                "content": content,
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for id, content in FRAME.items()
        ],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special("<|begin|>"), {"Sequence": {"id": "A", "type_id": 0}}, _special("<|end|>")],
            "pair": [],
            "special_tokens": {
                content: {"id": content, "ids": [id], "tokens": [content]} for id, content in FRAME.items()
            },
        },
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(byte_characters())}, "merges": []},
    }
    (path / "tokenizer.json").write_text(json.dumps(content))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest.fixture
def counter() -> Count:
    return Count()


def classifier(name: str, task: str, labels: tuple[str, ...], problem_type: str | None) -> ModelInfo:
    return ModelInfo(
        name=name,
        vocab_size=VOCAB,
        max_model_len=50,
        eos_token_ids=(EOS,),
        task=task,
        labels=labels,
        problem_type=problem_type,
    )


INFOS = (
    classifier("single", "classify", LABELS, None),
    classifier("multi", "classify", LABELS, "multi_label_classification"),
    classifier("value", "classify", LABELS[:1], None),
    classifier("values", "classify", LABELS, "regression"),
    classifier("tagger", "classify-tokens", LABELS, None),
    classifier("multi-tagger", "classify-tokens", LABELS, "multi_label_classification"),
    classifier("mapper", "embed", (), None),
)


@pytest.fixture
async def service(byte_checkpoint: Path, echo: Echo, counter: Count, tally: Tally) -> AsyncIterator[Service]:
    """Models that generate, `tiny` and `framing`, whose texts are framed, and one of every other kind."""
    tokenizer = Tokenizer.from_directory(byte_checkpoint)
    bare = Tokenizer(json.loads((byte_checkpoint / "tokenizer.json").read_text()) | {"post_processor": None})
    window, bare_window = EncodeWindow(tokenizer, tally), EncodeWindow(bare, tally)
    tiny = ServedModel(
        info=ModelInfo(name="tiny", vocab_size=VOCAB, max_model_len=100, eos_token_ids=(EOS,)),
        tokenizer=bare,
        template=ChatTemplate.from_directory(byte_checkpoint, bare),
        window=bare_window,
        desk=GrammarDesk(bare.special_ids),
        generator=echo,
    )
    framing = replace(tiny, info=replace(tiny.info, name="framing"), tokenizer=tokenizer, window=window)
    others = [
        ServedModel(
            info=info,
            tokenizer=tokenizer,
            template=None,
            window=window,
            encoder=replace(counter, letters="a") if info.name == "value" else counter,
        )
        for info in INFOS
    ]
    yield Service(models=[tiny, *others, framing], meters=tally)
    window.close()
    bare_window.close()
    tiny.desk.close()


@pytest.fixture
def state() -> WellServer:
    """What the server says of its engines; change it."""
    return WellServer()


@pytest.fixture
def server(service: Service, state: WellServer) -> Server:
    """What the server says of itself."""
    return server_of(service.infos, state)


@pytest.fixture
async def http(service: Service, server: Server, tally: Tally) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the HTTP application, in this process."""
    transport = httpx.ASGITransport(build_http_app(service, server, tally))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


class _Adapter:
    """Gives a servicer's methods to a plain grpc.aio server, which would turn a raised error into UNKNOWN."""

    def __init__(self, methods: GlmGrpc) -> None:
        self._methods = methods

    def __getattr__(self, name: str) -> object:
        method = getattr(self._methods, name)

        async def unary(request: object, context: object) -> object:
            with contextlib.suppress(GlmError):
                return await method(request, context)

        async def stream(request: object, context: object) -> AsyncIterator[object]:
            async with contextlib.aclosing(method(request, context)) as messages:
                with contextlib.suppress(GlmError):
                    async for message in messages:
                        yield message

        return stream if inspect.isasyncgenfunction(method) else unary


@contextlib.asynccontextmanager
async def serve_grpc(glm: GlmGrpc) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the methods, served for real on a free port."""
    server = grpc.aio.server()
    methods = _Adapter(glm)
    add_glm_to_server(methods, server)
    health_pb2_grpc.add_HealthServicer_to_server(methods, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


@pytest.fixture
def served() -> Callable[[GlmGrpc], contextlib.AbstractAsyncContextManager[grpc.aio.Channel]]:
    return serve_grpc


@pytest.fixture
async def channel(service: Service, server: Server, tally: Tally) -> AsyncIterator[grpc.aio.Channel]:
    async with serve_grpc(GlmGrpc(service, server, tally)) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> glm_pb2_grpc.GlmStub:
    return glm_pb2_grpc.GlmStub(channel)
