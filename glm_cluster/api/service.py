"""The served models, and from a validated request to pieces of text, for every wire alike.

Knows the models' names, tasks, vocabularies and lengths. Refuses to know how a request came in or how its answer goes
out, and how models answer that give numbers instead of text.
"""

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from glm_cluster.api.openai import ChatCompletionRequest, CompletionRequest
from glm_cluster.api.window import EncodeWindow
from glm_cluster.errors import ConfigError, InternalError, InvalidRequest, ModelNotFound
from glm_cluster.metrics import FIRST_TOKEN_S, INTER_TOKEN_S, TOKENS, Meters
from glm_cluster.records import (
    Encoder,
    FinishReason,
    GenerationRequest,
    Generator,
    ModelInfo,
    SamplingParams,
    Task,
)
from glm_cluster.text.chat import ChatTemplate, model_opens_line
from glm_cluster.text.stream import Detokenizer
from glm_cluster.text.tokenizer import Tokenizer
from glm_cluster.text.tools.dialect import Dialect

T = TypeVar("T")
_MESSAGE_BYTES = 64  # what a message costs to render besides its text
_WAYS: dict[Task, str] = {
    "generate": "POST /v1/chat/completions or /v1/completions (gRPC: Chat, ChatStream, Generate)",
    "classify": "POST /v1/classify (gRPC: Classify)",
    "classify-tokens": "POST /v1/classify_tokens (gRPC: ClassifyTokens)",
    "embed": "POST /v1/embeddings (gRPC: Embed)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model and what it takes to serve it. A model has the one of `generator` and `encoder` that its task needs."""

    info: ModelInfo
    tokenizer: Tokenizer
    template: ChatTemplate | None  # None: its checkpoint has none, and it answers no conversations
    window: EncodeWindow  # over the same tokenizer
    dialect: Dialect | None = None  # None: as the template says
    generator: Generator | None = None
    encoder: Encoder | None = None

    def __post_init__(self) -> None:
        """Refuse what could answer no request."""
        name, labels = self.info.name, self.info.labels
        if (self.generator if self.info.task == "generate" else self.encoder) is None:
            raise ConfigError(f"{name}: nothing runs its task {self.info.task!r}; give it an engine of that task")
        if not labels and self.info.task in ("classify", "classify-tokens"):
            raise ConfigError(f"{name}: a classifier needs labels; give its config.json an id2label")
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ConfigError(f"{name}: labels {twice} stand twice in its id2label; name each index differently")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a request cost. The stop token counts as output; cached tokens are part of the prompt."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that passed every check, and whether its answer begins with a line break that is not shown."""

    generation: GenerationRequest
    generator: Generator
    tokenizer: Tokenizer
    skip_newline: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of an answer. Exactly one delta, the last, has `finish` and `usage`.

    `token_ids` holds the stop token too, `text` never does. `text` never ends in half a character, so it may be empty.
    """

    text: str
    token_ids: tuple[int, ...]
    finish: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """All deltas of a request in one."""

    text: str
    token_ids: tuple[int, ...]
    finish: FinishReason
    usage: Usage


class Service:
    """The served models. `prepare_*` refuses a request or makes of it what an engine takes; `stream` runs it."""

    def __init__(self, *, models: Sequence[ServedModel], meters: Meters) -> None:
        self._models = {model.info.name: model for model in models}
        if len(self._models) < len(models) or not models:
            raise ConfigError(f"served models must have different names, not {[model.info.name for model in models]}")
        self._meters = meters

    @property
    def infos(self) -> list[ModelInfo]:
        """What is served, in the order of the configuration."""
        return [model.info for model in self._models.values()]

    def model(self, name: str, task: Task) -> ServedModel:
        """The model of that name; refused if there is none, or if it does something else than `task`."""
        if (found := self._models.get(name)) is None:
            served = ", ".join(map(repr, self._models))
            raise ModelNotFound(f"no model {name!r} here; this cluster serves {served}", param="model")
        if found.info.task != task:
            raise InvalidRequest(
                f"model: {name!r} is served for another task, {found.info.task!r}; ask it by {_WAYS[found.info.task]}",
                param="model",
            )
        return found

    async def read(self, parse: Callable[[], T], *, size_bytes: int) -> T:
        """What `parse` makes of a request, on another thread if the request is long."""
        anyone = next(iter(self._models.values()))  # before it is parsed, nobody knows which model it is for
        return await anyone.window.off_loop(parse, size_bytes=size_bytes)

    async def prepare_chat(self, request_id: str, request: ChatCompletionRequest) -> Prepared:
        """Render and tokenise a conversation; refuse what its model can never answer."""
        model = self.model(request.model, "generate")
        if (template := model.template) is None:
            raise InvalidRequest(
                f"model: {request.model!r} has no chat template; use POST /v1/completions (gRPC: Generate)",
                param="model",
            )
        messages = [{"role": m.role, "content": m.text} for m in request.messages]
        size_bytes = sum(_MESSAGE_BYTES + len(message["content"]) for message in messages)
        rendered = await model.window.off_loop(lambda: template.render(messages), size_bytes=size_bytes)
        generation = _generation(model.info, request_id, await model.window.encode(rendered), request, "messages")
        return _prepared(model, generation, skip_newline=model_opens_line(rendered))

    async def prepare_completion(self, request_id: str, request: CompletionRequest) -> Prepared:
        """Tokenise a prompt unless it is ids already; refuse what its model can never continue."""
        model = self.model(request.model, "generate")
        if isinstance(request.prompt, str):
            prompt = await model.window.encode(request.prompt)
        else:
            prompt = tuple(request.prompt)
        return _prepared(model, _generation(model.info, request_id, prompt, request, "prompt"))

    async def stream(self, prepared: Prepared) -> AsyncGenerator[Delta, None]:
        """The answer piece by piece. Closing this generator cancels the request down to the engine."""
        generation = prepared.generation
        detokenizer = Detokenizer(prepared.tokenizer, skip_newline=prepared.skip_newline)
        timer = _TokenTimer(self._meters)
        num_output = 0
        async with aclosing(prepared.generator.generate(generation)) as events:
            async for event in events:
                timer.tick()
                num_output += len(event.tokens)
                if event.finish is None:
                    yield Delta(detokenizer.push(event.tokens), event.tokens)
                    continue
                shown = event.tokens[:-1] if event.finish == "stop" else event.tokens
                text = detokenizer.push(shown) + detokenizer.finish()
                usage = Usage(
                    num_prompt_tokens=len(generation.prompt),
                    num_output_tokens=num_output,
                    num_cached_tokens=event.num_cached_tokens,
                )
                self.count(usage)
                yield Delta(text, event.tokens, _client_finish(event.finish), usage)
                return
        raise InternalError("the engine ended the stream without a reason; please send the request again")

    def count(self, usage: Usage) -> None:
        """Report what a request cost."""
        self._meters.count(TOKENS, usage.num_prompt_tokens, {"kind": "prompt"})
        self._meters.count(TOKENS, usage.num_cached_tokens, {"kind": "cached"})
        self._meters.count(TOKENS, usage.num_output_tokens, {"kind": "output"})


def check_ids(info: ModelInfo, ids: Sequence[int], param: str) -> None:
    """Refuse ids that the model has no row for."""
    if (worst := max(ids, default=0)) >= info.vocab_size:
        raise InvalidRequest(f"{param}: no token id {worst}; ids go up to {info.vocab_size - 1}", param=param)


def _prepared(model: ServedModel, generation: GenerationRequest, *, skip_newline: bool = False) -> Prepared:
    assert model.generator is not None, "a model that generates has one"
    return Prepared(generation, model.generator, model.tokenizer, skip_newline)


def _generation(
    info: ModelInfo,
    request_id: str,
    prompt: tuple[int, ...],
    request: ChatCompletionRequest | CompletionRequest,
    param: str,
) -> GenerationRequest:
    check_ids(info, prompt, param)
    check_ids(info, request.stop_token_ids, "stop_token_ids")
    sampling = SamplingParams(
        max_tokens=_max_tokens(info, len(prompt), request.output_limit, param),
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        seed=secrets.randbits(63) if request.seed is None else request.seed,
        stop_token_ids=tuple(dict.fromkeys((*info.eos_token_ids, *request.stop_token_ids))),
    )
    return GenerationRequest(
        request_id=request_id, prompt=prompt, sampling=sampling, max_drafts=request.prompt_lookup_num_tokens
    )


def _max_tokens(info: ModelInfo, num_prompt: int, asked: int | None, param: str) -> int:
    """What the client asked for, or what the model's length leaves; refuse what does not fit."""
    limit = info.max_model_len
    if num_prompt == 0:
        raise InvalidRequest(f"{param}: no tokens in it; send some text", param=param)
    check_prompt_limit(info, num_prompt, param)
    if num_prompt >= limit:
        raise InvalidRequest(
            f"{param}: {num_prompt} tokens, which leaves no room for an answer: {info.name} takes {limit} "
            "tokens of prompt and answer together; shorten it",
            param=param,
        )
    if asked is not None and num_prompt + asked > limit:
        raise InvalidRequest(
            f"max_tokens: {num_prompt} prompt tokens + {asked} max_tokens > {limit}, the most {info.name} "
            f"takes; ask for {limit - num_prompt} or fewer",
            param="max_tokens",
        )
    most = info.max_output_tokens or limit
    if asked is not None and asked > most:
        raise InvalidRequest(f"max_tokens: {asked}; this server gives {most} at most", param="max_tokens")
    return min(limit - num_prompt, most) if asked is None else asked


def check_prompt_limit(info: ModelInfo, num_tokens: int, param: str) -> None:
    """Refuse a prompt that the model could take and the server's settings do not."""
    if info.max_prompt_tokens is not None and num_tokens > info.max_prompt_tokens:
        raise InvalidRequest(
            f"{param}: {num_tokens} tokens; this server takes {info.max_prompt_tokens} at most; shorten or split it",
            param=param,
        )


class _TokenTimer:
    """Times the deliveries of one request."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._metric = FIRST_TOKEN_S
        self._last = time.perf_counter()

    def tick(self) -> None:
        """Report the time since the last delivery, or since the start at the first one."""
        now = time.perf_counter()
        self._meters.observe(self._metric, now - self._last)
        self._metric, self._last = INTER_TOKEN_S, now


def _client_finish(finish: FinishReason) -> FinishReason:
    if finish == "cancelled":
        raise InternalError("the engine cancelled a request whose client is still here; please send it again")
    return finish


async def collect(deltas: AsyncIterator[Delta]) -> Answer:
    """Gather a stream for a client that wants it whole."""
    texts: list[str] = []
    ids: list[int] = []
    async for delta in deltas:
        texts.append(delta.text)
        ids.extend(delta.token_ids)
        if delta.finish is not None and delta.usage is not None:
            return Answer("".join(texts), tuple(ids), delta.finish, delta.usage)
    raise InternalError("the stream ended without a reason; please send the request again")
