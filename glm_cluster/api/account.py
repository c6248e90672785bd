"""What one request is charged: reserved when it is admitted, counted as tokens go out, settled once when it ends.

Knows counts. Refuses to know wires, budgets and files: it is told whom to ask and where its record goes.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from glm_cluster.api.answers import Delta
from glm_cluster.api.callers import Caller
from glm_cluster.api.generations import Prepared
from glm_cluster.api.ledger import Slot
from glm_cluster.api.usage_record import FRONT_DIED, UsageRecord, utc
from glm_cluster.errors import GlmError, InvalidRequest


class Account:
    """The books of one request. Until it is admitted it costs nothing and leaves no record."""

    def __init__(
        self,
        *,
        caller: Caller,
        wire: str,
        route: str,
        max_choices: int,
        reserve: Callable[[int], int],
        settle: Callable[[int, int], None],
        enter: Callable[[UsageRecord], Slot],
        write: Callable[[UsageRecord, Slot], None],
    ) -> None:
        self.caller = caller
        self._wire = wire
        self._route = route
        self._max_choices = max_choices
        self._reserve = reserve
        self._settle = settle
        self._enter = enter
        self._write = write
        self._started = time.perf_counter()
        self._slot: Slot | None = None  # until it is admitted
        self._model = ""
        self._user: str | None = None
        self._reserved = 0
        self._num_prompt = 0
        self._num_cached = 0
        self._num_generated = 0
        self._num_delivered = 0
        self._finish: str | None = None

    def admit(self, *, model: str, num_prompt_tokens: int, max_tokens: int, user: str | None = None) -> None:
        """Reserve the most the request can use, or refuse it: its bearer may not, or may no more."""
        self.caller.check_model(model)
        self._reserved = self._reserve(num_prompt_tokens + max_tokens)
        self._model, self._user, self._num_prompt = model, user, num_prompt_tokens
        self._slot = self._enter(self._record(FRONT_DIED))

    def admit_generations(self, prepared: Prepared, *, model: str) -> Prepared:
        """The same of a request that generates, which is to run as it is returned: apart from other keys' prompts.

        A prompt counts once, the output of every choice.
        """
        if (num_choices := len(prepared.generations)) > self._max_choices:
            raise InvalidRequest(
                f"n: {num_choices} choices (prompts x n); this server gives {self._max_choices} at most", param="n"
            )
        self.caller.check_priority(prepared.generations[0].priority)
        num_prompt = sum(map(len, prepared.prompts))
        most = sum(generation.sampling.max_tokens for generation in prepared.generations)
        self.admit(model=model, num_prompt_tokens=num_prompt, max_tokens=most, user=prepared.user)
        salt = self.caller.cache_salt
        return replace(
            prepared,
            generations=tuple(replace(one, cache_salt=salt(one.cache_salt)) for one in prepared.generations),
        )

    async def metered(self, deltas: AsyncIterator[Delta], *, streamed: bool) -> AsyncGenerator[Delta, None]:
        """Count what passes. Streamed tokens count as delivered once the next ones are asked for, never sooner."""
        async for delta in deltas:
            self._num_generated += len(delta.token_ids)
            if delta.usage is not None:
                self._num_cached = delta.usage.num_cached_tokens
            self._finish = delta.finish or self._finish
            self._note()
            yield delta
            if streamed:
                self._num_delivered += len(delta.token_ids)
                self._note()

    def delivered(self) -> None:
        """All that came has gone out."""
        self._num_delivered = self._num_generated
        self._note()

    def encoded(self, num_cached_tokens: int) -> None:
        """The prompts have been read; there are no tokens to deliver."""
        self._num_cached = num_cached_tokens
        self._finish = "stop"
        self._note()

    def _note(self) -> None:
        """Keep the counts where they outlive this process."""
        if self._slot is not None:
            self._slot.count(self._num_generated, self._num_delivered, self._num_cached)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Settle and write the record at the end, whatever the end is."""
        status = "internal_error"
        try:
            yield
            status = "ok"
        except GlmError as error:
            status = error.code
            raise
        except (asyncio.CancelledError, GeneratorExit):
            status = "cancelled"
            raise
        finally:
            if self._slot is not None:
                self._settle(self._reserved, self._num_prompt + self._num_generated)
                self._write(self._record(status), self._slot)

    def _record(self, status: str) -> UsageRecord:
        return UsageRecord(
            time=utc(time.time()),
            request_id=self.caller.request_id,
            client_request_id=self.caller.client_request_id,
            key=None if self.caller.key is None else self.caller.key.name,
            user=self._user,
            model=self._model,
            wire=self._wire,
            route=self._route,
            prompt_tokens=self._num_prompt,
            cached_tokens=self._num_cached,
            completion_tokens=self._num_delivered,
            generated_tokens=self._num_generated,
            finish=self._finish,
            status=status,
            duration_s=round(time.perf_counter() - self._started, 6),
        )
