"""What a step is: the plan every rank receives, and what comes back. Knows no torch."""

from dataclasses import astuple, dataclass, field
from typing import Protocol, Self

import msgpack

from glm_cluster.records import Encoded, Pooling, SamplingParams


@dataclass(frozen=True, slots=True)
class Slice:
    """One sequence's share of a step: run `tokens` at positions start, start + 1, ..., then maybe sample or pool.

    The last `num_drafts` tokens are guesses. A token is sampled after the last known one, and after each guess as long
    as all before are what was sampled.
    """

    key: str  # request id and attempt
    tokens: tuple[int, ...]
    start: int
    blocks: tuple[int, ...]
    sampling: SamplingParams | None  # None while known tokens are left to compute
    pooling: Pooling | None = None  # of an encode request, where rows of this slice are wanted
    num_drafts: int = 0

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
            (
                s.key,
                s.tokens,
                s.start,
                s.blocks,
                None if s.sampling is None else astuple(s.sampling),
                s.pooling,
                s.num_drafts,
            )
            for s in self.slices
        ]
        return bytes(msgpack.packb(rows))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode what `pack` made."""
        rows = msgpack.unpackb(data, use_list=False)
        return cls(tuple(Slice(k, t, start, b, _sampling(s), p, n) for k, t, start, b, s, p, n in rows))


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
    """The sampled tokens, or the pooled rows, of every slice that wanted some, by key. Empty on ranks above 0."""

    tokens: dict[str, tuple[int, ...]] = field(default_factory=dict)  # right guesses, and the one sampled after them
    rows: dict[str, Pooled] = field(default_factory=dict)


_SAMPLING_FIELDS = tuple(SamplingParams.__dataclass_fields__)


def _sampling(row: tuple[object, ...] | None) -> SamplingParams | None:
    return None if row is None else SamplingParams(**dict(zip(_SAMPLING_FIELDS, row, strict=True)))  # type: ignore[arg-type]
