"""From a validated request to pieces of text, for every wire alike.

Knows the served model's name, vocabulary and length. Refuses to know how a request came in or how its answer goes out.
"""

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from glm_cluster.api.openai import ChatCompletionRequest, CompletionRequest
from glm_cluster.api.window import EncodeWindow
from glm_cluster.errors import InternalError, InvalidRequest, ModelNotFound
from glm_cluster.metrics import FIRST_TOKEN_S, INTER_TOKEN_S, TOKENS, Meters
from glm_cluster.records import FinishReason, GenerationRequest, Generator, ModelInfo, SamplingParams, TokenEvent
from glm_cluster.text.chat import ChatTemplate, model_opens_line
from glm_cluster.text.stream import Detokenizer
from glm_cluster.text.tokenizer import Tokenizer

T = TypeVar("T")
_MESSAGE_BYTES = 64  # what a message costs to render besides its text


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
    """Serves one model. `prepare_*` refuses a request or makes of it what an engine takes; `stream` runs it."""

    def __init__(
        self,
        *,
        info: ModelInfo,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        generator: Generator,
        encoder: EncodeWindow,
        meters: Meters,
    ) -> None:
        self.info = info
        self._tokenizer = tokenizer
        self._template = template
        self._generator = generator
        self._encoder = encoder
        self._meters = meters

    async def read(self, parse: Callable[[], T], *, size_bytes: int) -> T:
        """What `parse` makes of a request, on another thread if the request is long."""
        return await self._encoder.off_loop(parse, size_bytes=size_bytes)

    async def prepare_chat(self, request_id: str, request: ChatCompletionRequest) -> Prepared:
        """Render and tokenise a conversation; refuse what this model can never answer."""
        self._check_model(request.model)
        messages = [{"role": m.role, "content": m.text} for m in request.messages]
        size_bytes = sum(_MESSAGE_BYTES + len(message["content"]) for message in messages)
        rendered = await self._encoder.off_loop(lambda: self._template.render(messages), size_bytes=size_bytes)
        generation = self._generation(request_id, await self._encoder.encode(rendered), request, "messages")
        return Prepared(generation, skip_newline=model_opens_line(rendered))

    async def prepare_completion(self, request_id: str, request: CompletionRequest) -> Prepared:
        """Tokenise a prompt unless it is ids already; refuse what this model can never continue."""
        self._check_model(request.model)
        if isinstance(request.prompt, str):
            prompt = await self._encoder.encode(request.prompt)
        else:
            prompt = tuple(request.prompt)
        return Prepared(self._generation(request_id, prompt, request, "prompt"))

    async def stream(self, prepared: Prepared) -> AsyncGenerator[Delta, None]:
        """The answer piece by piece. Closing this generator cancels the request down to the engine."""
        generation = prepared.generation
        detokenizer = Detokenizer(self._tokenizer, skip_newline=prepared.skip_newline)
        timer = _TokenTimer(self._meters)
        num_output = 0
        async with aclosing(self._generator.generate(generation)) as events:
            async for event in events:
                timer.tick()
                num_output += len(event.tokens)
                if event.finish is None:
                    yield Delta(detokenizer.push(event.tokens), event.tokens)
                    continue
                shown = event.tokens[:-1] if event.finish == "stop" else event.tokens
                text = detokenizer.push(shown) + detokenizer.finish()
                usage = self._usage(generation, num_output, event)
                yield Delta(text, event.tokens, _client_finish(event.finish), usage)
                return
        raise InternalError("the engine ended the stream without a reason; please send the request again")

    def _check_model(self, name: str) -> None:
        if name != self.info.name:
            raise ModelNotFound(f"no model {name!r} here; this cluster serves {self.info.name!r}", param="model")

    def _check_ids(self, ids: tuple[int, ...], param: str) -> None:
        if (worst := max(ids, default=0)) >= self.info.vocab_size:
            raise InvalidRequest(f"{param}: no token id {worst}; ids go up to {self.info.vocab_size - 1}", param=param)

    def _generation(
        self, request_id: str, prompt: tuple[int, ...], request: ChatCompletionRequest | CompletionRequest, param: str
    ) -> GenerationRequest:
        self._check_ids(prompt, param)
        self._check_ids(tuple(request.stop_token_ids), "stop_token_ids")
        sampling = SamplingParams(
            max_tokens=self._max_tokens(len(prompt), request.output_limit, param),
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            min_p=request.min_p,
            seed=secrets.randbits(63) if request.seed is None else request.seed,
            stop_token_ids=tuple(dict.fromkeys((*self.info.eos_token_ids, *request.stop_token_ids))),
        )
        return GenerationRequest(request_id=request_id, prompt=prompt, sampling=sampling)

    def _max_tokens(self, num_prompt: int, asked: int | None, param: str) -> int:
        """What the client asked for, or what the model's length leaves; refuse what does not fit."""
        limit = self.info.max_model_len
        if num_prompt == 0:
            raise InvalidRequest(f"{param}: no tokens in it; send some text", param=param)
        if num_prompt >= limit:
            raise InvalidRequest(
                f"{param}: {num_prompt} tokens, which leaves no room for an answer: {self.info.name} takes {limit} "
                "tokens of prompt and answer together; shorten it",
                param=param,
            )
        if asked is not None and num_prompt + asked > limit:
            raise InvalidRequest(
                f"max_tokens: {num_prompt} prompt tokens + {asked} max_tokens > {limit}, the most {self.info.name} "
                f"takes; ask for {limit - num_prompt} or fewer",
                param="max_tokens",
            )
        return limit - num_prompt if asked is None else asked

    def _usage(self, generation: GenerationRequest, num_output: int, last: TokenEvent) -> Usage:
        usage = Usage(
            num_prompt_tokens=len(generation.prompt),
            num_output_tokens=num_output,
            num_cached_tokens=last.num_cached_tokens,
        )
        self._meters.count(TOKENS, usage.num_prompt_tokens, {"kind": "prompt"})
        self._meters.count(TOKENS, usage.num_cached_tokens, {"kind": "cached"})
        self._meters.count(TOKENS, usage.num_output_tokens, {"kind": "output"})
        return usage


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
