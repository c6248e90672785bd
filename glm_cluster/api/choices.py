"""From engine events to the deltas of a request's choices, which come as they come.

Knows how tokens become text and where a text ends. Refuses to know how a request came in or how its answer goes out.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from glm_cluster.api.answers import LIKELIHOOD_BYTES, Delta, Likelihood, Place, Usage
from glm_cluster.api.generations import Prepared
from glm_cluster.errors import InternalError
from glm_cluster.metrics import FIRST_TOKEN_S, INTER_TOKEN_S, TOKENS, Meters
from glm_cluster.records import FinishReason, TokenEvent, TokenLogprobs
from glm_cluster.text.stops import StopMatcher
from glm_cluster.text.stream import Detokenizer
from glm_cluster.text.tokenizer import Tokenizer


async def choice_deltas(prepared: Prepared, meters: Meters) -> AsyncGenerator[Delta, None]:
    """The deltas of all choices of a request. Closing this generator cancels them all down to the engine."""
    choices = [_Choice(prepared, index) for index in range(len(prepared.generations))]
    streams = [_deltas(prepared, choice, meters) for choice in choices]
    num_running, num_output = len(streams), 0
    async with aclosing(streams[0] if num_running == 1 else _merged(streams)) as deltas:
        async for delta in deltas:
            num_running -= delta.finish is not None
            num_output += len(delta.token_ids)
            if num_running and not prepared.tells_usage_so_far:
                yield delta
            else:
                usage = _usage(prepared, choices, num_output)
                so_far = usage if prepared.tells_usage_so_far else None
                if not num_running:
                    count_tokens(meters, usage)
                yield replace(delta, usage=None if num_running else usage, so_far=so_far)


def count_tokens(meters: Meters, usage: Usage) -> None:
    """Report what a request cost."""
    meters.count(TOKENS, usage.num_prompt_tokens, {"kind": "prompt"})
    meters.count(TOKENS, usage.num_cached_tokens, {"kind": "cached"})
    meters.count(TOKENS, usage.num_output_tokens, {"kind": "output"})


async def _deltas(prepared: Prepared, choice: "_Choice", meters: Meters) -> AsyncGenerator[Delta, None]:
    timer = _TokenTimer(meters)
    async with aclosing(prepared.generator.generate(prepared.generations[choice.index])) as events:
        async for event in events:
            timer.tick()
            if event.prompt_logprobs:
                await _read_prompt(prepared, choice, event.prompt_logprobs)
            delta = choice.read(event)
            yield delta
            if delta.finish is not None:
                return
    raise InternalError("the engine ended the stream without a reason; please send the request again")


async def _read_prompt(prepared: Prepared, choice: "_Choice", found: Sequence[TokenLogprobs | None]) -> None:
    num_found = sum(1 + len(one.top) for one in found if one is not None)
    await prepared.window.off_loop(lambda: choice.read_prompt(found), size_bytes=num_found * LIKELIHOOD_BYTES)


async def _merged(streams: Sequence[AsyncGenerator[Delta, None]]) -> AsyncGenerator[Delta, None]:
    """What all streams bring, in the order in which it comes. An error of one is the error of all."""
    queue: asyncio.Queue[Delta | Exception] = asyncio.Queue(maxsize=len(streams))
    pumps = [asyncio.create_task(_pump(stream, queue)) for stream in streams]
    num_running = len(pumps)
    try:
        while num_running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            num_running -= item.finish is not None
            yield item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(stream: AsyncGenerator[Delta, None], queue: "asyncio.Queue[Delta | Exception]") -> None:
    try:
        async with aclosing(stream):
            async for delta in stream:
                await queue.put(delta)
    except Exception as error:  # told by whoever reads the queue
        await queue.put(error)


class _Choice:
    """One choice in the making: makes deltas of its events."""

    def __init__(self, prepared: Prepared, index: int) -> None:
        self.index = index
        self.num_output = 0
        self.num_cached: int | None = None  # None: no event yet
        self._prepared = prepared
        reading = prepared.reading
        self._detokenizer = Detokenizer(
            prepared.tokenizer,
            skip_newline=prepared.skip_newline and reading is None,
            shown={} if reading is None else reading.shown(prepared.tokenizer),
        )
        self._reader = None if reading is None else reading.begin()
        stops = prepared.stops
        self._matcher = None if stops is None else StopMatcher(stops, include=prepared.shows_stop)
        self._hides_newline = prepared.skip_newline and reading is not None  # from the matcher: its reader drops it
        self._is_plain = stops is None and prepared.num_logprobs is None
        self._min_tokens = prepared.generations[index].sampling.min_tokens
        self._echo = prepared.echoes[index // prepared.n] if prepared.echoes else ""
        self._num_chars = len(self._echo)
        self._opening: Delta | None = Delta(self._echo, (), index=index) if self._echo else None

    def read_prompt(self, found: Sequence[TokenLogprobs | None]) -> None:
        """Take in how likely the prompt's tokens were, to be told in the first delta."""
        prepared = self._prepared
        prompt = prepared.generations[self.index].prompt
        places: tuple[Place, ...] = ()
        if prepared.num_prompt_logprobs is not None:
            places = tuple(_places(prepared.tokenizer, prompt, found, prepared.num_prompt_logprobs))
        echoed: tuple[Place, ...] = ()
        if prepared.echoes and prepared.num_logprobs is not None:
            echoed = tuple(_places(prepared.tokenizer, prompt, found, prepared.num_logprobs))
        self._opening = Delta(self._echo, (), index=self.index, places=echoed, prompt_places=places)

    def read(self, event: TokenEvent) -> Delta:
        """The delta of one event."""
        delta = self._read(event)
        return delta if self._reader is None else self._reader.read(delta)

    def _read(self, event: TokenEvent) -> Delta:
        if self.num_cached is None:
            self.num_cached = event.num_cached_tokens
        if event.finish is None and self._is_plain and self._opening is None:
            self.num_output += len(event.tokens)
            return Delta(self._detokenizer.push(event.tokens), event.tokens, index=self.index)
        delta = self._read_tokens(event)
        if self._opening is None:
            return delta
        opening, self._opening = self._opening, None
        places = opening.places + delta.places
        return replace(delta, text=opening.text + delta.text, places=places, prompt_places=opening.prompt_places)

    def _read_tokens(self, event: TokenEvent) -> Delta:
        """Read token by token, up to the one that completes a stop string."""
        texts: list[str] = []
        places: list[Place] = []
        for count, token in enumerate(event.tokens, 1):
            if self._prepared.num_logprobs is not None:
                places.append(self._place(token, event.logprobs[count - 1]))
            self.num_output += 1
            is_stop = event.finish == "stop" and count == len(event.tokens)
            if not is_stop or self._prepared.shows_stop:
                texts.append(self._show(self._detokenizer.push((token,))))
            if (matched := self._matched) is not None:
                return self._delta(texts, event.tokens[:count], places, "stop", matched)
        if event.finish is None:
            return self._delta(texts, event.tokens, places)
        return self._last_delta(texts, event, places)

    def _last_delta(self, texts: list[str], event: TokenEvent, places: list[Place]) -> Delta:
        texts.append(self._show(self._detokenizer.finish()))
        if (matched := self._matched) is not None:
            return self._delta(texts, event.tokens, places, "stop", matched)
        if self._matcher is not None:
            texts.append(self._matcher.finish())
        finish = _client_finish(event.finish)
        ended_by = event.tokens[-1] if finish == "stop" and event.tokens else None
        reason = ended_by if ended_by in self._prepared.told_stop_ids else None
        return self._delta(texts, event.tokens, places, finish, reason)

    def _delta(
        self,
        texts: list[str],
        tokens: tuple[int, ...],
        places: list[Place],
        finish: FinishReason | None = None,
        reason: str | int | None = None,
    ) -> Delta:
        return Delta("".join(texts), tokens, finish, None, self.index, reason, tuple(places))

    def _show(self, text: str) -> str:
        self._num_chars += len(text)
        if self._matcher is None or not text:
            return text
        hidden = "\n" if self._hides_newline and text.startswith("\n") else ""
        self._hides_newline = False
        return hidden + self._matcher.push(text[len(hidden) :], armed=self.num_output > self._min_tokens)

    @property
    def _matched(self) -> str | None:
        return None if self._matcher is None else self._matcher.matched

    def _place(self, token: int, found: TokenLogprobs) -> Place:
        most = self._prepared.num_logprobs
        assert most is not None
        return _place(self._prepared.tokenizer, token, found, most, self._num_chars)


def _places(
    tokenizer: Tokenizer, tokens: Sequence[int], found: Sequence[TokenLogprobs | None], most: int
) -> Iterator[Place]:
    """The places of a prompt."""
    shown = Detokenizer(tokenizer)
    offset = 0
    for token, one in zip(tokens, found, strict=True):
        yield _place(tokenizer, token, one, most, offset)
        offset += len(shown.push((token,)))


def _place(tokenizer: Tokenizer, token: int, found: TokenLogprobs | None, most: int, offset: int) -> Place:
    spelling = tokenizer.spelling(token)
    if found is None:
        return Place(token, spelling, offset, None)
    top = tuple(
        Likelihood(id, tokenizer.spelling(id), logprob, rank) for rank, (id, logprob) in enumerate(found.top[:most], 1)
    )
    return Place(token, spelling, offset, Likelihood(token, spelling, found.logprob, found.rank), top)


def _usage(prepared: Prepared, choices: Sequence[_Choice], num_output: int) -> Usage:
    """What the choices cost so far."""
    n = prepared.n
    of_prompts = [choices[start : start + n] for start in range(0, len(choices), n)]
    return Usage(
        num_prompt_tokens=sum(len(prompt) for prompt in prepared.prompts),
        num_output_tokens=num_output,
        num_cached_tokens=sum(min(choice.num_cached or 0 for choice in those) for those in of_prompts),
    )


def _client_finish(finish: FinishReason | None) -> FinishReason | None:
    if finish == "cancelled":
        raise InternalError("the engine cancelled a request whose client is still here; please send it again")
    return finish


class _TokenTimer:
    """Times the deliveries of one choice."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._metric = FIRST_TOKEN_S
        self._last = time.perf_counter()

    def tick(self) -> None:
        """Report the time since the last delivery, or since the start at the first one."""
        now = time.perf_counter()
        self._meters.observe(self._metric, now - self._last)
        self._metric, self._last = INTER_TOKEN_S, now
