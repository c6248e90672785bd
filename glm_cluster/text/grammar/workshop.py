"""Compiles grammars on a thread of its own, while somebody wants them, and keeps those used last.

Knows futures. Refuses to know who waits: an event loop awaits them, an engine looks whether they are done.
"""

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from glm_cluster.errors import GlmError, InternalError
from glm_cluster.records import Grammar
from glm_cluster.text.grammar.matcher import Mask, Matcher
from glm_cluster.text.grammar.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

KEPT = 64  # grammars

_Answer = TypeVar("_Answer")


class Workshop:
    """One thread, one vocabulary, made there too: for a large one that takes seconds."""

    def __init__(self, open_vocabulary: Callable[[], Vocabulary]) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self._vocabulary = self._thread.submit(open_vocabulary)
        self._kept: OrderedDict[Grammar, Future[Matcher]] = OrderedDict()
        self._num_wanting: Counter[Future[Matcher]] = Counter()  # of what is not compiled yet
        self._running: set[Future[Any]] = set()  # what `run` was given, until it has returned
        self._lock = threading.RLock()  # a future that is cancelled under it tells `_forget` at once

    @property
    def num_wanted(self) -> int:
        """Grammars and other work that somebody waits for."""
        return len(self._num_wanting) + len(self._running)

    def has(self, grammar: Grammar) -> bool:
        """Whether the grammar is compiled, or will be unless nobody wants it any more."""
        with self._lock:
            return (found := self._kept.get(grammar)) is not None and not found.cancelled()

    def want(self, grammar: Grammar) -> Future[Matcher]:
        """The matcher at the start of an output, to be forked; or the InvalidRequest that the grammar is."""
        with self._lock:
            if (found := self._kept.get(grammar)) is None or found.cancelled():
                found = self._kept[grammar] = self._thread.submit(self._compile, grammar)
            self._kept.move_to_end(grammar)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            self._num_wanting[found] += 1
            if self._num_wanting[found] == 1:
                found.add_done_callback(self._forget)
            return found

    def run(self, work: Callable[[], _Answer]) -> "Future[_Answer]":
        """What `work` returns, from the thread that compiles."""
        job = self._thread.submit(work)
        self._running.add(job)
        job.add_done_callback(self._running.discard)
        return job

    def leave(self, wanted: Future[Matcher]) -> None:
        """Take back that one wanted this. What nobody wants any more is not begun."""
        with self._lock:
            self._num_wanting[wanted] -= 1
            if self._num_wanting[wanted] <= 0:
                del self._num_wanting[wanted]
                wanted.cancel()

    def follow(self, grammar: Grammar) -> "Following":
        """The constraint of one output; at once, whether or not the grammar is compiled."""
        return Following(self, self.want(grammar))

    def close(self) -> None:
        """End the thread once it has finished what it is doing."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _forget(self, compiled: Future[Matcher]) -> None:
        with self._lock:
            self._num_wanting.pop(compiled, None)

    def _compile(self, grammar: Grammar) -> Matcher:
        return Matcher.compile(grammar, self._vocabulary.result())


class Following:
    """One output's constraint: not ready while its grammar is compiled, and useless from its first error on."""

    def __init__(self, workshop: Workshop, compiled: "Future[Matcher]") -> None:
        self._workshop = workshop
        self._compiled = compiled
        self._matcher: Matcher | None = None
        self.error: GlmError | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it takes tokens and says what is allowed, or `error` is set."""
        if not self._compiled.done():
            return False
        if self._matcher is None and self.error is None:
            self._begin()
        return True

    def wait(self, timeout_s: float) -> None:
        """Until it is ready, but not longer than that."""
        try:
            self._compiled.exception(timeout_s)
        except TimeoutError:
            return

    def leave(self) -> None:
        """Nobody waits for it any more, or asks it anything."""
        self._workshop.leave(self._compiled)

    @property
    def num_taken(self) -> int:
        """Tokens of output so far."""
        return 0 if self._matcher is None else self._matcher.num_taken

    def take(self, tokens: Sequence[int]) -> None:
        """The output goes on with these; `error` says so where they do not match."""
        self._ask(lambda matcher: matcher.take(tokens))

    def allowed(self) -> Mask | None:
        """A bit for each id that may follow; None, and `error` says why, where the grammar leads no further."""
        return self._ask(Matcher.allowed)

    def forced(self) -> Sequence[int]:
        """The next tokens as far as there is no choice about them."""
        return self._ask(Matcher.forced) or ()

    def _ask(self, question: Callable[[Matcher], _Answer]) -> _Answer | None:
        if not self.is_ready or self._matcher is None:
            return None
        try:
            return question(self._matcher)
        except GlmError as error:
            self.error = error
            self._matcher = None
            return None

    def _begin(self) -> None:
        error = self._compiled.exception()
        if error is None:
            self._matcher = self._compiled.result().fork()
        elif isinstance(error, GlmError):
            self.error = error
        else:
            logger.error("a grammar could not be compiled", exc_info=error)
            self.error = InternalError("the grammar could not be compiled; the engine's log says why, please report it")
