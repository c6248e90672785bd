"""An answer in pieces and as a whole, and what it cost, for every wire alike. Knows no wire and no engine."""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias

from glm_cluster.errors import InternalError
from glm_cluster.records import FinishReason

ChoiceFinish: TypeAlias = FinishReason | Literal["tool_calls"]
"""tool_calls: the engine's `stop`, of an output that calls tools."""


LIKELIHOOD_BYTES = 256  # what it costs to tell how likely a token was, as so many bytes of text
ID_BYTES = 8  # what it costs to tell a token's id


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a request cost. The stop token counts as output; cached tokens are part of the prompt.

    A prompt counts once, however many choices continue it, and as cached what none of them had to compute.
    """

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely the model found a token. `spelling` is what the token by itself is shown as."""

    token_id: int
    spelling: bytes
    logprob: float
    rank: int  # 1: the likeliest


@dataclass(frozen=True, slots=True)
class Place:
    """One place of a text: the token that stands there, and the likeliest, best first.

    The first token of a prompt has no likelihood. `offset` is where the token begins in the choice's text, in
    characters.
    """

    token_id: int
    spelling: bytes
    offset: int
    likelihood: Likelihood | None
    top: tuple[Likelihood, ...] = ()


@dataclass(frozen=True, slots=True)
class CallDelta:
    """The next piece of a tool call: what its arguments go on with. Its first has `id` and `name`."""

    index: int  # of the call in its choice
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A whole call."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of one choice. A choice's last has `finish`; the last of all has `usage`.

    `token_ids` holds the stop token too; `text` does only where stop strings are to be shown. `text` never ends in half
    a character or in what may become a stop string, so it may be empty, and it may be that of earlier tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    finish: ChoiceFinish | None = None
    usage: Usage | None = None
    index: int = 0  # of the choice
    stop_reason: str | int | None = None  # the stop string or the client's own stop id that ended it
    places: tuple[Place, ...] = ()  # of the text's tokens, where asked for
    prompt_places: tuple[Place, ...] = ()  # of the prompt's, in a choice's first delta
    so_far: Usage | None = None  # up to here, where every piece is to say it
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """All deltas of one choice in one."""

    text: str
    token_ids: tuple[int, ...]
    finish: ChoiceFinish
    stop_reason: str | int | None = None
    places: tuple[Place, ...] = ()
    prompt_places: tuple[Place, ...] = ()
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Answers:
    """All choices of a request, in order, and what they cost together."""

    choices: tuple[Answer, ...]
    usage: Usage


def told_bytes(pieces: Iterable[Delta | Answer]) -> int:
    """What it costs to tell of the probabilities in them, as so many bytes of text."""
    places = (place for piece in pieces for place in chain(piece.places, piece.prompt_places))
    return LIKELIHOOD_BYTES * sum(1 + len(place.top) for place in places)


async def collect(deltas: AsyncIterator[Delta]) -> Answers:
    """Gather a stream for a client that wants it whole."""
    choices: dict[int, list[Delta]] = {}
    async for delta in deltas:
        choices.setdefault(delta.index, []).append(delta)
        if delta.usage is not None:
            return Answers(tuple(_answer(choices[index]) for index in sorted(choices)), delta.usage)
    raise InternalError("the stream ended without a reason; please send the request again")


def _answer(deltas: list[Delta]) -> Answer:
    last = deltas[-1]
    assert last.finish is not None, "the last delta of all comes after every choice's last"
    return Answer(
        "".join(delta.text for delta in deltas),
        tuple(token for delta in deltas for token in delta.token_ids),
        last.finish,
        last.stop_reason,
        tuple(place for delta in deltas for place in delta.places),
        deltas[0].prompt_places,
        "".join(delta.reasoning for delta in deltas),
        _calls([call for delta in deltas for call in delta.calls]),
    )


def _calls(deltas: Sequence[CallDelta]) -> tuple[ToolCall, ...]:
    """Put calls together."""
    begun = [delta for delta in deltas if delta.id is not None]
    arguments: dict[int, list[str]] = {}
    for delta in deltas:
        arguments.setdefault(delta.index, []).append(delta.arguments)
    return tuple(ToolCall(one.id or "", one.name or "", "".join(arguments[one.index])) for one in begun)
