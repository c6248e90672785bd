"""What the HTTP wire sends back for numbers, piece by piece: a reply may be too long to be made at one go.

Knows JSON, no sockets. Embeddings have OpenAI's shape; classifications the one that generating replies have.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NotRequired, TypeAlias

from typing_extensions import TypedDict

from glm_cluster.api.answers import Usage
from glm_cluster.api.encodings import Answers, Tokens
from glm_cluster.api.json_pieces import coalesced
from glm_cluster.api.scores import Floats, Verdict

EncodingFormat: TypeAlias = Literal["float", "base64"]


class InputTokensDetails(TypedDict):
    """Where the inputs' tokens came from."""

    cached_tokens: int


class InputUsage(TypedDict):
    """What a request without output cost."""

    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: InputTokensDetails


class EmbeddingBody(TypedDict):
    """One input's vector: numbers, or base64 of them as little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: Sequence[float] | str


class EmbeddingsBody(TypedDict):
    """The reply of /v1/embeddings."""

    object: Literal["list"]
    model: str
    usage: InputUsage
    data: Sequence[EmbeddingBody]


class VerdictBody(TypedDict):
    """Labels and how well they fit; a model that estimates several values has neither a best label nor its score."""

    label: str | None
    score: float | None
    scores: NotRequired[Mapping[str, float]]
    labels: NotRequired[Sequence[str]]


class ClassificationBody(VerdictBody):
    """One input's labels."""

    index: int


class TokenBody(VerdictBody):
    """One token's labels, and where it stands in the text."""

    token_id: int
    text: str
    start: int | None
    end: int | None


class TokensBody(TypedDict):
    """One input's tokens."""

    index: int
    tokens: Sequence[TokenBody]


class ClassifyBody(TypedDict):
    """The reply of /v1/classify."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: InputUsage
    data: Sequence[ClassificationBody]


class ClassifyTokensBody(TypedDict):
    """The reply of /v1/classify_tokens."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: InputUsage
    data: Sequence[TokensBody]


def embedding_pieces(answers: Answers[Floats], encoding_format: EncodingFormat) -> Iterator[bytes]:
    """The reply of /v1/embeddings."""
    envelope = {"object": "list", "model": answers.head.model, "usage": _usage_body(answers.usage)}
    return _with_data(envelope, ([_embedding(*item, encoding_format)] for item in enumerate(answers.items)))


def classification_pieces(answers: Answers[Verdict]) -> Iterator[bytes]:
    """The reply of /v1/classify."""
    labels = answers.info.labels
    bodies = ({"index": index, **_verdict(verdict, labels)} for index, verdict in enumerate(answers.items))
    return _with_data(_envelope(answers), ([_json(body)] for body in bodies))


def token_pieces(answers: Answers[Tokens], *, include_scores: bool) -> Iterator[bytes]:
    """The reply of /v1/classify_tokens."""
    labels = answers.info.labels if include_scores else None
    return _with_data(_envelope(answers), (_tokens(*item, labels) for item in enumerate(answers.items)))


def _envelope(answers: Answers[Verdict] | Answers[Tokens]) -> dict[str, object]:
    head = answers.head
    usage = _usage_body(answers.usage)
    return {"id": head.id, "object": "list", "created": head.created, "model": head.model, "usage": usage}


def _with_data(envelope: Mapping[str, object], items: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """The envelope with one more member, `data`: the list of items, each of them made in pieces."""
    return coalesced(_with_list(envelope, items))


def _with_list(envelope: Mapping[str, object], items: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    yield _json(envelope).removesuffix(b"}") + b',"data":['
    for index, item in enumerate(items):
        if index:
            yield b","
        yield from item
    yield b"]}"


def _embedding(index: int, vector: Floats, encoding_format: EncodingFormat) -> bytes:
    numbers: object = vector.tolist()
    if encoding_format == "base64":
        numbers = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return _json({"object": "embedding", "index": index, "embedding": numbers})


def _tokens(index: int, tokens: Tokens, labels: Sequence[str] | None) -> Iterator[bytes]:
    yield b'{"index":%d,"tokens":[' % index
    for place, id in enumerate(tokens.ids):
        start, end = tokens.spans[place] if tokens.spans is not None else (None, None)
        verdict = _verdict(tokens.scores[place], labels)
        token = _json({"token_id": id, "text": tokens.texts[place], "start": start, "end": end, **verdict})
        yield b"," + token if place else token
    yield b"]}"


def _verdict(verdict: Verdict, labels: Sequence[str] | None) -> dict[str, object]:
    """A verdict, with the scores of all `labels` if given."""
    body: dict[str, object] = {"label": verdict.label, "score": verdict.score}
    if labels is not None:
        body["scores"] = dict(zip(labels, verdict.scores, strict=True))
    if verdict.probable is not None:
        body["labels"] = verdict.probable
    return body


def _usage_body(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "total_tokens": usage.num_prompt_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
    }


def _json(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
