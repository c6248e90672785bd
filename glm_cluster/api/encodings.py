"""From a validated request to numbers for each of its inputs, for every wire alike.

Knows how inputs become prompts and rows become answers. Refuses to know how a request came in or how its answer goes
out. All inputs are tokenised and checked before the first one runs; then they run side by side, and when one fails
the others are cancelled.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from glm_cluster.api.account import Account
from glm_cluster.api.answers import Usage
from glm_cluster.api.generations import check_ids, check_prompt_limit
from glm_cluster.api.inputs import ClassifyRequest, ClassifyTokensRequest, EmbeddingRequest, EncodingBody
from glm_cluster.api.replies import Head
from glm_cluster.api.scores import Floats, Scores, Verdict, activation_of, rows_of, unit
from glm_cluster.api.service import ServedModel, Service
from glm_cluster.api.window import EncodeWindow
from glm_cluster.errors import ContextExceeded, InvalidRequest, Overloaded
from glm_cluster.records import Encoded, Encoder, EncodeRequest, ModelInfo, Pooling, Task

_PAUSES_S = (0.05, 0.1, 0.2, 0.4, *[0.8] * 20)  # before an input of a list gives up on a full engine
ABREAST = 256  # inputs of one request inside the engines at a time: a long list alone must not fill their queues

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One input as an engine gets it: `framed` is `ids` between those that the tokenizer puts around a text."""

    text: str | None  # None: it came as token ids
    ids: tuple[int, ...]
    framed: tuple[int, ...]
    num_before: int = 0


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one input and what is said of each. `texts` and `spans` are parts of the text, if there is one."""

    ids: Sequence[int]
    texts: Sequence[str]
    spans: Sequence[tuple[int, int]] | None
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers(Generic[A]):
    """An answer for each input, in order, and what they cost together. `window` is where to make long replies."""

    head: Head
    info: ModelInfo
    items: Sequence[A]
    usage: Usage
    window: EncodeWindow


async def embed(service: Service, request: EmbeddingRequest, account: Account | None = None) -> Answers[Floats]:
    """A vector for each input."""
    run = await _Run.of(service, request, account, "embed", "embd-")

    async def answer(index: int, prompt: Prompt) -> Floats:
        (row,) = await run.rows(index, request.pooling, num_rows=1)
        return unit(row) if request.normalize else row

    return await run.answers(answer)


async def classify(service: Service, request: ClassifyRequest, account: Account | None = None) -> Answers[Verdict]:
    """The labels of each input."""
    run = await _Run.of(service, request, account, "classify", "clsf-")
    labels, activation = run.info.labels, activation_of(run.info)

    async def answer(index: int, prompt: Prompt) -> Verdict:
        judged = without_padding(prompt.framed, run.info.pad_token_id)
        logits = await run.rows(index, "last", num_rows=1, width=len(labels), ids=judged)
        return Scores(logits, labels, activation, raw=request.raw_scores)[0]

    return await run.answers(answer)


async def classify_tokens(
    service: Service, request: ClassifyTokensRequest, account: Account | None = None
) -> Answers[Tokens]:
    """The labels of each token of each input, those around a text left out."""
    run = await _Run.of(service, request, account, "classify-tokens", "clsf-")
    labels, activation = run.info.labels, activation_of(run.info)

    async def answer(index: int, prompt: Prompt) -> Tokens:
        rows = await run.rows(index, "tokens", num_rows=len(prompt.framed), width=len(labels))

        def judge() -> Tokens:
            shown = rows[prompt.num_before : prompt.num_before + len(prompt.ids)]
            return run.tokens(prompt, Scores(shown, labels, activation, raw=request.raw_scores))

        return await run.window.off_loop(judge, size_bytes=rows.nbytes + 4 * len(prompt.ids))

    return await run.answers(answer)


class _Run:
    """One request on its way: its prompts, and how much of them came from a cache."""

    def __init__(
        self,
        service: Service,
        account: Account | None,
        *,
        model: ServedModel,
        encoder: Encoder,
        head: Head,
        prompts: Sequence[Prompt],
    ) -> None:
        self.info = model.info
        self.window = model.window
        self._service = service
        self._account = account
        self._salt = None if account is None else account.caller.cache_salt(None)
        self._tokenizer = model.tokenizer
        self._encoder = encoder
        self._head = head
        self._prompts = prompts
        self._abreast = asyncio.Semaphore(ABREAST)
        self._num_cached = 0

    @classmethod
    async def of(
        cls, service: Service, request: EncodingBody, account: Account | None, task: Task, id_prefix: str
    ) -> "_Run":
        """Tokenise all inputs; refuse what the model can never answer, and what `account` cannot pay."""
        model = service.model(request.model, task)
        assert model.encoder is not None, "a model that answers with numbers has one"
        request_id = secrets.token_hex(12) if account is None else account.caller.request_id
        head = Head(id=id_prefix + request_id, model=model.info.name)
        prompts = await _prompts(model, request)
        if account is not None:
            num_tokens = sum(len(prompt.framed) for prompt in prompts)
            account.admit(model=model.info.name, num_prompt_tokens=num_tokens, max_tokens=0, user=request.user)
        return cls(service, account, model=model, encoder=model.encoder, head=head, prompts=prompts)

    async def answers(self, answer: Callable[[int, Prompt], Coroutine[object, object, A]]) -> Answers[A]:
        """The answer to every prompt, or the first error."""
        items = await _all([answer(index, prompt) for index, prompt in enumerate(self._prompts)])
        usage = Usage(
            num_prompt_tokens=sum(len(prompt.framed) for prompt in self._prompts),
            num_output_tokens=0,
            num_cached_tokens=self._num_cached,
        )
        self._service.count(usage)
        if self._account is not None:
            self._account.encoded(usage.num_cached_tokens)
        return Answers(head=self._head, info=self.info, items=items, usage=usage, window=self.window)

    async def rows(
        self,
        index: int,
        pooling: Pooling,
        *,
        num_rows: int,
        width: int | None = None,
        ids: tuple[int, ...] | None = None,
    ) -> Floats:
        """What the engine makes of one prompt, or of `ids` in its place, checked."""
        prompt = self._prompts[index].framed if ids is None else ids
        request = EncodeRequest(
            request_id=f"{self._head.id}-{index}", prompt=prompt, pooling=pooling, cache_salt=self._salt
        )
        async with self._abreast:
            encoded = await self._encode(request)
        self._num_cached += encoded.num_cached_tokens
        return rows_of(encoded, num_rows=num_rows, width=width)

    async def _encode(self, request: EncodeRequest) -> Encoded:
        """What the engine makes of a prompt. One of a list waits for room a while: its list fills the queue itself."""
        for pause_s in _PAUSES_S if len(self._prompts) > 1 else ():
            try:
                return await self._encoder.encode(request)
            except Overloaded:
                await asyncio.sleep(pause_s)
        return await self._encoder.encode(request)

    def tokens(self, prompt: Prompt, scores: Scores) -> Tokens:
        """Put the scores to the tokens of a prompt and to the places in its text."""
        if prompt.text is None:
            return Tokens(prompt.ids, [self._tokenizer.decode([id]) for id in prompt.ids], None, scores)
        spans = self._tokenizer.spans(prompt.text, prompt.ids)
        return Tokens(prompt.ids, [prompt.text[start:end] for start, end in spans], spans, scores)


def without_padding(ids: tuple[int, ...], pad: int | None) -> tuple[int, ...]:
    """Up to the rightmost token that is not padding, the one HF's classifier pools; of nothing but padding, the first.

    GLM's padding id ends texts as well, so it comes in prompts. Later tokens do not change earlier ones.
    """
    end = len(ids)
    while end > 1 and ids[end - 1] == pad:
        end -= 1
    return ids[:end]


async def _prompts(model: ServedModel, request: EncodingBody) -> list[Prompt]:
    """Every input as a prompt that the model can take; the first that is none is refused."""
    before, after = model.tokenizer.frame if request.add_special_tokens else ((), ())
    inputs = request.inputs
    texts = [given for given in inputs if isinstance(given, str)]
    encoded = iter(await _all([model.window.encode(text) for text in texts]))

    def prompts() -> Iterator[Prompt]:
        for index, given in enumerate(inputs):
            if isinstance(given, str):
                ids = next(encoded)
                prompt = Prompt(given, ids, (*before, *ids, *after), len(before))
            else:
                prompt = Prompt(None, tuple(given), tuple(given))
            _check(model.info, prompt, request.name_of(index))
            yield prompt

    return await model.window.drain(prompts(), lambda prompt: 4 * len(prompt.framed))


def _check(info: ModelInfo, prompt: Prompt, param: str) -> None:
    check_ids(info, prompt.framed, param)
    if not prompt.ids:
        raise InvalidRequest(f"{param}: no tokens in it; send some text", param=param)
    check_prompt_limit(info, len(prompt.framed), param)
    if (num_tokens := len(prompt.framed)) > (limit := info.max_model_len):
        raise ContextExceeded.of(num_tokens, limit, parts="in the input", advice="Shorten or split it", param=param)


async def _all(works: Sequence[Coroutine[object, object, A]]) -> list[A]:
    """What all of them return, or the first error once the others are cancelled and have cleaned up."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
