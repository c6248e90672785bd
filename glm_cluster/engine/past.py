"""What rank 0 knows of a sequence when it samples: what was asked for, and every token so far. Knows no tensor.

It stays where the sequence is: the plan that the other ranks get does not carry it.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm_cluster.engine.constraint import Constraint
from glm_cluster.engine.tally import Tally
from glm_cluster.records import SamplingParams


class Past:
    """One sequence's, for as long as it lives: what is costly to find out of it is found out once.

    `tokens` is the sequence's own list, which only grows: the prompt and the output so far.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        tokens: Sequence[int],
        num_prompt: int,
        constraint: Constraint | None = None,
    ) -> None:
        self.sampling = sampling
        self.tokens = tokens
        self.num_prompt = num_prompt
        self.constraint = constraint
        self.allowed_ids = None if sampling.allowed_token_ids is None else array("q", sampling.allowed_token_ids)
        self.biased_ids = array("q", [token for token, _ in sampling.logit_bias])
        self.biases = array("f", [bias for _, bias in sampling.logit_bias])
        self.edits_logits = constraint is not None or _edits_logits(sampling)
        self._seen = Tally()
        self._said = Tally()

    def seen(self, drafts: Sequence[int]) -> Tally:
        """The tokens of prompt, output and `drafts`, which are right guesses that are not in the output yet."""
        self._seen.add(self._from(self._seen.num_tokens, drafts))
        return self._seen

    def said(self, drafts: Sequence[int]) -> Tally:
        """The same without the prompt."""
        self._said.add(self._from(self.num_prompt + self._said.num_tokens, drafts))
        return self._said

    def allowed(self, drafts: Sequence[int]) -> NDArray[np.int32] | None:
        """What may come after the output and `drafts` by the grammar; None where there is none, or it has an error."""
        if self.constraint is None:
            return None
        self._inform(self.constraint, drafts)
        return self.constraint.allowed()

    def forced(self) -> Sequence[int]:
        """What its grammar leaves no choice about after the output."""
        if self.constraint is None:
            return ()
        self._inform(self.constraint, ())
        return self.constraint.forced()

    def _inform(self, constraint: Constraint, drafts: Sequence[int]) -> None:
        """Give it what it has not been given yet."""
        start = self.num_prompt + constraint.num_taken
        assert start <= len(self.tokens) + len(drafts)
        constraint.take(self._from(start, drafts))

    def _from(self, start: int, drafts: Sequence[int]) -> list[int]:
        return [*self.tokens[start:], *drafts[max(0, start - len(self.tokens)) :]]


@dataclass(frozen=True, slots=True)
class Draw:
    """The past of one row: that of its sequence, and the guesses before it, all of them right."""

    past: Past
    drafts: tuple[int, ...] = ()

    @property
    def sampling(self) -> SamplingParams:
        """What was asked for."""
        return self.past.sampling

    @property
    def num_output(self) -> int:
        """Tokens of output before this one."""
        return len(self.past.tokens) - self.past.num_prompt + len(self.drafts)

    def last_output(self, count: int) -> tuple[int, ...]:
        """The last `count` tokens of output before this one; fewer where there are fewer."""
        known = self.past.tokens
        start = max(self.past.num_prompt, len(known) + len(self.drafts) - count)
        return (*known[start:], *self.drafts[max(0, start - len(known)) :])

    def forbidden(self) -> list[int]:
        """Ids that may not come here, of stop tokens that are too early and of bad words that would be completed."""
        sampling = self.sampling
        ids = [*sampling.stop_token_ids] if self.num_output < sampling.min_tokens else []
        if sampling.bad_words:
            recent = self.last_output(max(len(word) for word in sampling.bad_words) - 1)
            ids += [word[-1] for word in sampling.bad_words if _ends_with(recent, word[:-1])]
        return ids


def _ends_with(tokens: tuple[int, ...], end: tuple[int, ...]) -> bool:
    return len(end) <= len(tokens) and tokens[len(tokens) - len(end) :] == end


def _edits_logits(sampling: SamplingParams) -> bool:
    penalties = (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty - 1)
    listed = (sampling.logit_bias, sampling.bad_words, sampling.min_tokens)
    return any(penalties) or any(listed) or sampling.allowed_token_ids is not None
