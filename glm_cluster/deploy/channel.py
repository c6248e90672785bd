"""What travels beside Ray, over zmq: its records, their msgpack form, and the seal that keeps strangers out.

Knows no socket, no event loop and no engine. Never pickle: a message is data, whoever sent it.
"""

import secrets
from collections.abc import Sequence
from dataclasses import MISSING, asdict, astuple, dataclass, field, fields
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, Literal, Self, TypeAlias

import msgpack

from glm_cluster.deploy.failure import named_error
from glm_cluster.errors import GlmError
from glm_cluster.records import (
    Encoded,
    EncodeRequest,
    FinishReason,
    GenerationRequest,
    Grammar,
    ReplicaLoad,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)

Request: TypeAlias = GenerationRequest | EncodeRequest

LossKind: TypeAlias = Literal["died", "moved", "refused"]
"""died: the engine died with the request inside; moved: it must go on elsewhere though no death is proven (an orderly
stop, a broken connection, tokens lost on the way); refused: no engine ever saw it, so trying again costs nothing."""

_MAC_BYTES = 16
_DEFAULTS = {f.name: f.default for f in fields(SamplingParams) if f.default is not MISSING}


class Seal:
    """Signs messages with a shared key, and recognises those signed with it."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    @classmethod
    def new(cls) -> Self:
        """A seal with a fresh random key."""
        return cls(secrets.token_bytes(32))

    def close(self, body: bytes) -> bytes:
        """`body` with its signature in front."""
        return self._mac(body) + body

    def open(self, message: bytes) -> bytes | None:
        """The body of `message`, or None where the signature is not ours."""
        body = message[_MAC_BYTES:]
        return body if compare_digest(message[:_MAC_BYTES], self._mac(body)) else None

    def _mac(self, body: bytes) -> bytes:
        return blake2b(body, key=self.key, digest_size=_MAC_BYTES).digest()


@dataclass(frozen=True, slots=True)
class ReturnAddress:
    """Where messages go, a request's tokens to an ingress's inbox for one, and the key that they are sealed with."""

    endpoint: str
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Submission:
    """A request on its way to a replica. `reply_to` is None where the receipt says all: for encode requests and probes.

    `avoid` names replicas that failed earlier attempts; the router goes elsewhere where it can.
    """

    request: Request
    reply_to: ReturnAddress | None
    avoid: tuple[str, ...] = ()

    def pack(self) -> bytes:
        """What rank 0 must know of it, as msgpack."""
        to = self.reply_to
        return _pack([_request_out(self.request), None if to is None else (to.endpoint, to.key)])

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """From msgpack."""
        request, address = _unpack(body)
        return cls(_request_in(request), None if address is None else ReturnAddress(*address))


@dataclass(frozen=True, slots=True)
class Receipt:
    """How a submission ended at its replica. It may overtake the last tokens, so it says how many there were."""

    num_tokens: int  # of the whole output, earlier attempts included
    finish: FinishReason
    encoded: Encoded | None = None  # of an encode request


@dataclass(frozen=True, slots=True)
class Loss:
    """A submission that its replica could not finish; the request may be re-entered elsewhere."""

    reason: str
    kind: LossKind
    replica: str | None = None  # None where only the connection is known to have failed


@dataclass(frozen=True, slots=True)
class Orders:
    """Replica to rank 0: everything that arrived since the last message."""

    adds: tuple[bytes, ...] = ()  # submissions, each packed by itself: one that cannot be harms no other
    cancels: tuple[tuple[str, int], ...] = ()  # (request_id, attempt)

    def pack(self) -> bytes:
        """As msgpack."""
        return _pack([self.adds, self.cancels])

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """From msgpack."""
        adds, cancels = _unpack(body)
        return cls(tuple(adds), tuple((r, a) for r, a in cancels))


@dataclass(frozen=True, slots=True)
class Tokens:
    """Rank 0 to one ingress: what one step made for all of its requests."""

    epoch: str  # of the group that made them; an ingress takes the tokens of an attempt from one epoch only
    events: tuple[TokenEvent, ...]

    def pack(self) -> bytes:
        """As msgpack."""
        return _pack([self.epoch, [_event_out(e) for e in self.events]])

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """From msgpack."""
        epoch, rows = _unpack(body)
        return cls(epoch, tuple(map(_event_in, rows)))


@dataclass(frozen=True, slots=True)
class Ended:
    """One submission that left the engine: finished with a receipt, or refused with an error."""

    request_id: str
    attempt: int
    outcome: Receipt | GlmError


@dataclass(frozen=True, slots=True)
class Report:
    """Rank 0 to its replica: a heartbeat, with what ended and what the engine holds."""

    steps: int  # real steps so far
    load: ReplicaLoad
    ended: tuple[Ended, ...]
    batches: tuple[int, ...]  # requests in each submission the engine took since the last report

    def pack(self) -> bytes:
        """As msgpack."""
        return _pack([self.steps, asdict(self.load), [_ended_out(e) for e in self.ended], self.batches])

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """From msgpack."""
        steps, load, ended, batches = _unpack(body)
        return cls(steps, ReplicaLoad(**load), tuple(_ended_in(e) for e in ended), tuple(batches))


@dataclass(frozen=True, slots=True)
class BytesRead:
    """A rank, while it loads, to whoever started the cluster: how far it is."""

    source: str
    done: int
    total: int

    def pack(self) -> bytes:
        """As msgpack."""
        return _pack([self.source, self.done, self.total])

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """From msgpack."""
        return cls(*_unpack(body))


def _request_out(request: Request) -> list[Any]:
    head = [request.request_id, request.attempt, request.prompt]
    if isinstance(request, EncodeRequest):
        return ["encode", *head, request.pooling, request.cache_salt]
    sampling = _sampling_out(request.sampling)
    return ["generate", *head, request.output, request.max_drafts, request.priority, request.cache_salt, sampling]


def _request_in(row: Sequence[Any]) -> Request:
    kind, request_id, attempt, prompt, *rest = row
    if kind == "encode":
        pooling, cache_salt = rest
        return EncodeRequest(
            request_id=request_id, attempt=attempt, prompt=tuple(prompt), pooling=pooling, cache_salt=cache_salt
        )
    output, max_drafts, priority, cache_salt, sampling = rest
    return GenerationRequest(
        request_id=request_id,
        attempt=attempt,
        prompt=tuple(prompt),
        output=tuple(output),
        max_drafts=max_drafts,
        priority=priority,
        cache_salt=cache_salt,
        sampling=_sampling_in(sampling),
    )


def _sampling_out(sampling: SamplingParams) -> dict[str, Any]:
    """What differs from the defaults: most requests say little, and each is sent with every attempt."""
    given = {name: getattr(sampling, name) for name in SamplingParams.__slots__}
    if sampling.grammar is not None:
        given["grammar"] = astuple(sampling.grammar)
    return {name: value for name, value in given.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}


def _sampling_in(given: dict[str, Any]) -> SamplingParams:
    values = {name: _tupled(value) for name, value in given.items()}
    if "grammar" in values:
        values["grammar"] = Grammar(*values["grammar"])
    return SamplingParams(**values)


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _event_out(event: TokenEvent) -> list[Any]:
    """Log-probabilities last, and only where there are some."""
    head = [event.request_id, event.attempt, event.start, event.tokens, event.finish, event.num_cached_tokens]
    if not event.logprobs and not event.prompt_logprobs:
        return head
    return [*head, list(map(_logprobs_out, event.logprobs)), list(map(_logprobs_out, event.prompt_logprobs))]


def _event_in(row: Sequence[Any]) -> TokenEvent:
    request_id, attempt, start, tokens, finish, num_cached, *judged = row
    logprobs, prompt_logprobs = judged or ((), ())
    return TokenEvent(
        request_id,
        attempt,
        start,
        tuple(tokens),
        finish,
        num_cached,
        logprobs=tuple(_logprobs_in(one) for one in logprobs),
        prompt_logprobs=tuple(one and _logprobs_in(one) for one in prompt_logprobs),
    )


def _logprobs_out(one: TokenLogprobs | None) -> tuple[float, int, Any] | None:
    return None if one is None else (one.logprob, one.rank, one.top)


def _logprobs_in(row: Sequence[Any]) -> TokenLogprobs:
    logprob, rank, top = row
    return TokenLogprobs(logprob, rank, _tupled(top))


def _ended_out(ended: Ended) -> list[Any]:
    outcome = ended.outcome
    if isinstance(outcome, Receipt):
        encoded = outcome.encoded
        rows = encoded and (encoded.num_rows, encoded.width, encoded.values, encoded.num_cached_tokens)
        return [ended.request_id, ended.attempt, outcome.num_tokens, outcome.finish, rows]
    return [ended.request_id, ended.attempt, type(outcome).__name__, outcome.message, outcome.param]


def _ended_in(row: Sequence[Any]) -> Ended:
    request_id, attempt, *rest = row
    if isinstance(rest[0], int):
        num_tokens, finish, rows = rest
        return Ended(request_id, attempt, Receipt(num_tokens, finish, rows and Encoded(*rows)))
    name, message, param = rest
    return Ended(request_id, attempt, named_error(name, message, param=param))


def _pack(value: object) -> bytes:
    return bytes(msgpack.packb(value))


def _unpack(body: bytes) -> Any:
    return msgpack.unpackb(body, use_list=True)
