"""Which tokens may follow an output, so that all of it matches a grammar.

Knows the library's matcher. What it says is a function of the grammar and of the output's ids, however they came.
"""

from collections.abc import Sequence
from typing import TypeAlias

import llguidance
import numpy as np
from numpy.typing import NDArray

from glm_cluster.errors import GlmError, InternalError, InvalidRequest
from glm_cluster.records import Grammar
from glm_cluster.text.grammar import limits
from glm_cluster.text.grammar.scrutiny import sentence
from glm_cluster.text.grammar.source import advice, library_source
from glm_cluster.text.grammar.vocabulary import Vocabulary

Mask: TypeAlias = NDArray[np.int32]
"""A bit for each id: bit v % 32 of word v // 32 says whether v may come."""

_BESIDE = "doesn't satisfy the grammar"  # the library's words for a token that may not come


class Matcher:
    """One output on its way through a grammar. Not for two threads at once."""

    def __init__(self, state: llguidance.LLMatcher, num_words: int) -> None:
        self._state = state
        self._num_words = num_words
        self.num_taken = 0

    @classmethod
    def compile(cls, grammar: Grammar, vocabulary: Vocabulary) -> "Matcher":
        """At the start of an output; InvalidRequest if the grammar is none, is too complex, or matches nothing."""
        state = llguidance.LLMatcher(vocabulary.library, library_source(grammar), log_level=0, limits=limits.LIBRARY)
        if state.is_error():
            raise InvalidRequest(sentence(state.get_error()) + advice(grammar))
        matcher = cls(state, vocabulary.num_words)
        try:
            matcher.fork().allowed()  # what goes wrong at once goes wrong here
        except GlmError as error:
            raise InvalidRequest(f"nothing can match it, or it is too complex ({error.message})") from error
        return matcher

    def fork(self) -> "Matcher":
        """Another one at the same place."""
        twin = Matcher(self._state.deep_copy(), self._num_words)
        twin.num_taken = self.num_taken
        return twin

    def take(self, tokens: Sequence[int]) -> None:
        """Go on with these. InternalError if they do not match, InvalidRequest if the grammar is too complex here."""
        self.num_taken += len(tokens)
        if tokens and not self._state.consume_tokens(list(tokens)):
            raise self._lost()

    def allowed(self) -> Mask:
        """What may follow; where the output is complete, the stop tokens. InvalidRequest as with `take`."""
        mask = np.zeros(self._num_words, dtype=np.int32)
        bits = np.frombuffer(self._state.compute_bitmask(), dtype=np.int32)
        if self._state.is_error() or not bits.any():
            raise self._lost()
        mask[: len(bits)] = bits[: self._num_words]
        return mask

    def forced(self) -> list[int]:
        """The next tokens as far as the grammar leaves one text alone, split as the tokenizer splits it."""
        return list(self._state.compute_ff_tokens())

    def _lost(self) -> GlmError:
        """Why the output cannot go on: the grammar's fault, unless a token came that it had not let through."""
        error = self._state.get_error()
        if _BESIDE in error:
            return InternalError(f"the output left its grammar: {sentence(error)}")
        return InvalidRequest(
            f"the grammar cannot be followed after {self.num_taken} tokens ({sentence(error)}); make it simpler"
        )
