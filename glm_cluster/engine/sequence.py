"""One request's state in the engine: the only mutable record, owned by the scheduler."""

from typing import TypeAlias

from glm_cluster.engine.blocks import block_hash, root_hash
from glm_cluster.engine.constraint import Constraint
from glm_cluster.engine.lookup import PromptLookup
from glm_cluster.engine.past import Past
from glm_cluster.engine.plan import Pooled, Slice
from glm_cluster.errors import GlmError
from glm_cluster.records import (
    EncodeRequest,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)

Request: TypeAlias = GenerationRequest | EncodeRequest


class Sequence:
    """Tokens known so far, how many of them are computed, and the blocks that hold their keys and values.

    `tokens` is prompt + output. The step loop only ever closes the gap between `num_computed` and `len(tokens)`. An
    encode request has no output, and `pooled` is what the rows computed so far came to.
    """

    def __init__(
        self,
        request: Request,
        *,
        block_tokens: int,
        max_tokens: int,
        max_drafts: int = 0,
        constraint: Constraint | None = None,
    ) -> None:
        self.request = request
        self.key = sequence_key(request.request_id, request.attempt)
        self.sampling = request.sampling if isinstance(request, GenerationRequest) else None
        self.pooling = request.pooling if isinstance(request, EncodeRequest) else None
        self.pooled: Pooled | None = None
        self.priority = request.priority if isinstance(request, GenerationRequest) else 0
        self.scores: list[TokenLogprobs] = []  # of the prompt's tokens so far but the first
        self.tokens = [*request.prompt, *(request.output if isinstance(request, GenerationRequest) else ())]
        self.max_len = len(request.prompt) + max_tokens
        self.num_computed = 0
        self.num_cached = 0  # prompt tokens found in the prefix cache at first admission
        self.was_admitted = False
        self.blocks: list[int] = []
        self.lookup = PromptLookup()
        self.is_forced = False  # whether its grammar has said what must follow, so that nothing is looked up
        self.constraint = constraint
        self.past = None if self.sampling is None else self._past(self.sampling, constraint)
        self._max_drafts = max_drafts
        self._block_tokens = block_tokens
        self._root_hash = root_hash(request.cache_salt)
        self._hashes: list[bytes] = []

    def _past(self, sampling: SamplingParams, constraint: Constraint | None) -> Past:
        return Past(sampling, self.tokens, len(self.request.prompt), constraint)

    @property
    def is_ready(self) -> bool:
        """Whether what its outputs must match is known."""
        return self.constraint is None or self.constraint.is_ready

    @property
    def error(self) -> GlmError | None:
        """Why it cannot go on."""
        return None if self.constraint is None else self.constraint.error

    @property
    def num_output(self) -> int:
        """Tokens generated so far, those of earlier attempts included."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def num_missing(self) -> int:
        """Tokens known but not computed."""
        return len(self.tokens) - self.num_computed

    @property
    def needs_every_row(self) -> bool:
        """Whether each token must be computed here, also those whose keys and values are known."""
        return self.pooling in ("mean", "tokens") or self.scores_prompt

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's tokens are to be judged: what was, went out with the first token of output."""
        return self.sampling is not None and self.sampling.prompt_logprobs is not None and self.num_output == 0

    def num_scored(self, count: int) -> int:
        """How many of the next `count` tokens have one of the prompt after them that is to be judged."""
        return max(0, min(count, len(self.request.prompt) - 1 - self.num_computed)) if self.scores_prompt else 0

    @property
    def num_shareable(self) -> int:
        """Leading tokens that the prefix cache may stand for; one token at least is computed."""
        return 0 if self.needs_every_row else len(self.tokens) - 1

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks needed beyond those held, to compute `num_tokens` more."""
        return -(-(self.num_computed + num_tokens) // self._block_tokens) - len(self.blocks)

    def forced(self) -> tuple[int, ...]:
        """Tokens that its grammar says must follow, as many as `draft` might give."""
        if self.past is None or self.constraint is None or self._most_drafts < 1:
            return ()
        forced = tuple(self.past.forced())
        self.is_forced = bool(forced)
        return forced[: self._most_drafts]

    def draft(self) -> tuple[int, ...]:
        """Tokens that may follow, short of the sequence's end: one more is always sampled after them."""
        return self.lookup.draft(self.tokens, self._most_drafts) if self._most_drafts > 0 else ()

    @property
    def _most_drafts(self) -> int:
        return min(self._max_drafts, self.max_len - len(self.tokens) - 1)

    def hashes(self, num_tokens: int) -> list[bytes]:
        """Names of the full blocks within the first `num_tokens` tokens; computed once each."""
        count = num_tokens // self._block_tokens
        while len(self._hashes) < count:
            start = len(self._hashes) * self._block_tokens
            parent = self._hashes[-1] if self._hashes else self._root_hash
            self._hashes.append(block_hash(parent, self.tokens[start : start + self._block_tokens]))
        return self._hashes[:count]

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it is at its end; None while there is something to compute or to sample."""
        if self.sampling is None:
            return None if self.num_missing else "stop"
        if self.num_output and self.tokens[-1] in self.sampling.stop_token_ids:
            return "stop"
        if len(self.tokens) < self.max_len or (self.scores_prompt and self.num_missing):
            return None
        return "length"

    def slice(self, count: int) -> Slice:
        """The next `count` tokens as a step computes them."""
        start = self.num_computed
        is_last = count == self.num_missing
        return Slice(
            key=self.key,
            tokens=tuple(self.tokens[start : start + count]),
            start=start,
            blocks=tuple(self.blocks),
            samples=is_last and self.sampling is not None and len(self.tokens) < self.max_len,
            pooling=self.pooling if is_last or self.needs_every_row else None,
            num_scored=self.num_scored(count),
            past=self.past,
        )

    def event(
        self, tokens: tuple[int, ...], finish: FinishReason | None, logprobs: tuple[TokenLogprobs, ...] = ()
    ) -> TokenEvent:
        """What its client is told of its last `tokens`. The scores of a prompt are given away, once."""
        return TokenEvent(
            self.request.request_id,
            self.request.attempt,
            start=self.num_output - len(tokens),
            tokens=tokens,
            finish=finish,
            num_cached_tokens=self.num_cached,
            encoded=None if self.pooled is None else self.pooled.encoded(self.num_cached),
            logprobs=logprobs[: len(tokens)],
            prompt_logprobs=self._prompt_logprobs(tokens) if tokens or finish == "length" else (),
        )

    def _prompt_logprobs(self, tokens: tuple[int, ...]) -> tuple[TokenLogprobs | None, ...]:
        """With the first tokens of output, or where there are to be none, if asked for."""
        if self.sampling is None or self.sampling.prompt_logprobs is None or self.num_output > len(tokens):
            return ()
        scores, self.scores = self.scores, []
        assert len(scores) == len(self.request.prompt) - 1
        return (None, *scores)


def sequence_key(request_id: str, attempt: int) -> str:
    """Two attempts of one request may meet in one engine; they are different sequences."""
    return f"{request_id}#{attempt}"
