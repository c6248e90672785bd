"""What a step is: the plan every rank receives, and what comes back. Knows no torch."""

from dataclasses import dataclass, field
from typing import Protocol, Self

import msgpack

from glm_cluster.engine.past import Past
from glm_cluster.records import Encoded, Pooling, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Slice:
    """One sequence's share of a step: run `tokens` at positions start, start + 1, ..., then maybe sample or pool.

    The last `num_drafts` tokens are guesses. A token is sampled after the last known one, and after each guess as long
    as all before are what was sampled. What it is sampled with, `past`, is for rank 0 alone and stays there.
    """

    key: str  # request id and attempt
    tokens: tuple[int, ...]
    start: int
    blocks: tuple[int, ...]
    samples: bool  # False while known tokens are left to compute
    pooling: Pooling | None = None  # of an encode request, where rows of this slice are wanted
    num_drafts: int = 0
    num_scored: int = 0  # leading tokens after each of which the prompt's next one is judged
    past: Past | None = field(default=None, compare=False)  # of a slice that samples or scores

    @property
    def num_known(self) -> int:
        """Tokens that are no guesses."""
        return len(self.tokens) - self.num_drafts

    @property
    def drafts(self) -> tuple[int, ...]:
        """The guesses."""
        return self.tokens[self.num_known :]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The only thing broadcast to the ranks."""

    slices: tuple[Slice, ...]

    def pack(self) -> bytes:
        """Encode for the wire between ranks."""
        rows = [
            (s.key, s.tokens, s.start, s.blocks, s.samples, s.pooling, s.num_drafts, s.num_scored) for s in self.slices
        ]
        return bytes(msgpack.packb(rows))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode what `pack` made, as a rank sees it that does not sample."""
        return cls(tuple(Slice(*row) for row in msgpack.unpackb(data, use_list=False)))


class Pooled(Protocol):
    """What the rows of a prompt's tokens came to so far: opaque to whoever keeps it."""

    def plus(self, later: Self) -> Self:
        """With the rows of the tokens that follow."""
        ...

    def encoded(self, num_cached_tokens: int) -> Encoded:
        """The result, once every token is in."""
        ...


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What every slice wanted of tokens, pooled rows and log-probabilities, by key. Empty on ranks above 0."""

    tokens: dict[str, tuple[int, ...]] = field(default_factory=dict)  # right guesses, and the one sampled after them
    rows: dict[str, Pooled] = field(default_factory=dict)
    logprobs: dict[str, tuple[TokenLogprobs, ...]] = field(default_factory=dict)  # of `tokens`, where asked for
    scores: dict[str, tuple[TokenLogprobs, ...]] = field(default_factory=dict)  # of the prompt, where asked for
