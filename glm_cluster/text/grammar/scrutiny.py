"""What the library says of grammars, asked as long as one request may have them looked over.

Knows the library's words, and processor time. Refuses to know what is to become of a grammar that is at fault.
"""

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import sha256
from threading import Lock
from typing import Any

import llguidance

from glm_cluster.text.grammar import limits

MOST_S = 2.0  # of processor time; one that is begun is looked at to its end, which takes a second at worst
SPENT = "the schemas of this request take too long to look over; make them smaller, or offer fewer tools"
_KEPT = 1024  # answers: an agent sends its tools again with every turn


class Scrutiny:
    """The same questions as below, from now on and on this thread, until time is up: then all is at fault."""

    def __init__(self, most_s: float = MOST_S, clock: Callable[[], float] = time.thread_time) -> None:
        self._clock = clock
        self._ends_at = clock() + most_s

    @property
    def is_spent(self) -> bool:
        """Whether nothing more is looked at."""
        return self._clock() >= self._ends_at

    def fault(self, schema: Mapping[str, Any]) -> str:
        """What `fault` says, or that time is up."""
        return SPENT if self.is_spent else fault(schema)


def fault(schema: Mapping[str, Any]) -> str:
    """Why the library refuses a schema with options of its own, in its words; empty if it does not."""
    return grammar_fault({"json_schema": schema})


def grammar_fault(grammar: Mapping[str, Any]) -> str:
    """The same of any grammar in the library's form."""
    source = json.dumps({"grammars": [grammar]})
    digest = sha256(source.encode()).digest()
    if (known := _answers.get(digest)) is None:
        known = _answers.put(digest, sentence(llguidance.LLMatcher.validate_grammar(source, limits=limits.LIBRARY)))
    return known


def sentence(error: str) -> str:
    """The library's words, short of the state that it adds."""
    return " ".join(error.partition("<non-verbose/>")[0].partition("<backtrace>")[0].split())[:300]


class _Answers:
    """Those given last, by digests, as grammars are long; for all threads."""

    def __init__(self) -> None:
        self._by_digest: OrderedDict[bytes, str] = OrderedDict()
        self._lock = Lock()

    def get(self, digest: bytes) -> str | None:
        with self._lock:
            if digest in self._by_digest:
                self._by_digest.move_to_end(digest)
            return self._by_digest.get(digest)

    def put(self, digest: bytes, answer: str) -> str:
        with self._lock:
            self._by_digest[digest] = answer
            if len(self._by_digest) > _KEPT:
                self._by_digest.popitem(last=False)
        return answer


_answers = _Answers()
