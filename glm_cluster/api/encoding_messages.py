"""Protobuf messages to what `inputs` validates, and numbers to protobuf messages. Knows no calls."""

from collections.abc import Iterator, Sequence

from glm_cluster.api.encodings import Answers, Tokens
from glm_cluster.api.inputs import MAX_INPUTS, ClassifyRequest, ClassifyTokensRequest, EmbeddingRequest
from glm_cluster.api.messages import fields_given, usage_message
from glm_cluster.api.proto import glm_pb2
from glm_cluster.api.schema import too_many
from glm_cluster.api.scores import Floats, Verdict
from glm_cluster.errors import InvalidRequest

_POOLINGS = {glm_pb2.POOLING_LAST: "last", glm_pb2.POOLING_MEAN: "mean"}


def embedding_request(message: glm_pb2.EmbedRequest) -> EmbeddingRequest:
    """Validate inputs to make vectors of."""
    raw = _raw(message)
    if "pooling" in raw:
        raw["pooling"] = _POOLINGS.get(message.pooling, str(message.pooling))
    return EmbeddingRequest.parse(raw)


def classify_request(message: glm_pb2.ClassifyRequest) -> ClassifyRequest:
    """Validate inputs to label."""
    return ClassifyRequest.parse(_raw(message))


def classify_tokens_request(message: glm_pb2.ClassifyTokensRequest) -> ClassifyTokensRequest:
    """Validate inputs whose tokens to label."""
    return ClassifyTokensRequest.parse(_raw(message))


def _raw(
    message: glm_pb2.EmbedRequest | glm_pb2.ClassifyRequest | glm_pb2.ClassifyTokensRequest,
) -> dict[str, object]:
    """The fields that were given, inputs as in JSON."""
    if len(message.input) > MAX_INPUTS:  # before each is looked into for unknown fields
        raise InvalidRequest(f"input: {too_many(MAX_INPUTS)}", param="input")
    raw: dict[str, object] = fields_given(message)
    if message.input:
        raw["input"] = [_input(item) for item in message.input]
    return raw


def _input(message: glm_pb2.Input) -> str | list[int] | None:
    kind = message.WhichOneof("input")
    if kind is None:
        return None
    return message.text if kind == "text" else list(message.token_ids.ids)


async def embed_response(answers: Answers[Floats]) -> glm_pb2.EmbedResponse:
    """The vectors."""
    made = (glm_pb2.Embedding(index=index, values=vector.tolist()) for index, vector in enumerate(answers.items))
    embeddings = await answers.window.drain(made, lambda item: item.ByteSize())
    head = answers.head
    return glm_pb2.EmbedResponse(
        id=head.id,
        created=head.created,
        model=head.model,
        embeddings=embeddings,
        usage=usage_message(answers.usage),
    )


async def classify_response(answers: Answers[Verdict]) -> glm_pb2.ClassifyResponse:
    """The labels of inputs."""
    labels = answers.info.labels
    made = (_classification(index, verdict, labels) for index, verdict in enumerate(answers.items))
    classifications = await answers.window.drain(made, lambda item: item.ByteSize())
    head = answers.head
    return glm_pb2.ClassifyResponse(
        id=head.id,
        created=head.created,
        model=head.model,
        classifications=classifications,
        usage=usage_message(answers.usage),
    )


async def classify_tokens_response(answers: Answers[Tokens], *, include_scores: bool) -> glm_pb2.ClassifyTokensResponse:
    """The labels of tokens."""
    labels = answers.info.labels if include_scores else None
    head = answers.head
    response = glm_pb2.ClassifyTokensResponse(
        id=head.id, created=head.created, model=head.model, usage=usage_message(answers.usage)
    )
    for index, tokens in enumerate(answers.items):
        made = await answers.window.drain(_tokens(tokens, labels), lambda item: item.ByteSize())
        response.inputs.add(index=index, tokens=made)
    return response


def _classification(index: int, verdict: Verdict, labels: Sequence[str]) -> glm_pb2.Classification:
    return glm_pb2.Classification(
        index=index,
        label=verdict.label,
        score=verdict.score,
        scores=_scores(verdict, labels),
        labels=verdict.probable,
    )


def _tokens(tokens: Tokens, labels: Sequence[str] | None) -> Iterator[glm_pb2.ClassifiedToken]:
    for place, id in enumerate(tokens.ids):
        start, end = tokens.spans[place] if tokens.spans is not None else (None, None)
        verdict = tokens.scores[place]
        yield glm_pb2.ClassifiedToken(
            token_id=id,
            text=tokens.texts[place],
            start=start,
            end=end,
            label=verdict.label,
            score=verdict.score,
            scores=None if labels is None else _scores(verdict, labels),
            labels=verdict.probable,
        )


def _scores(verdict: Verdict, labels: Sequence[str]) -> list[glm_pb2.LabelScore]:
    pairs = zip(labels, verdict.scores, strict=True)
    return [glm_pb2.LabelScore(label=label, score=score) for label, score in pairs]
