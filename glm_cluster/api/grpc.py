"""The gRPC wire: `glm_cluster.v1.Glm` over a `Service`. Knows calls, nothing of models or engines.

Ray Serve sends a call to the method of the same name, so the methods carry the names of the .proto file.
"""

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from glm_cluster.api.answers import collect
from glm_cluster.api.calls import CallContext, status_of
from glm_cluster.api.edge import edge
from glm_cluster.api.encoding_messages import (
    classify_request,
    classify_response,
    classify_tokens_request,
    classify_tokens_response,
    embed_response,
    embedding_request,
)
from glm_cluster.api.encodings import classify, classify_tokens, embed
from glm_cluster.api.health import HealthMethods
from glm_cluster.api.messages import (
    ChunkWriter,
    chat_request,
    chat_response,
    completion_request,
    model_message,
)
from glm_cluster.api.proto import glm_pb2
from glm_cluster.api.replies import Head, asked
from glm_cluster.api.service import Service
from glm_cluster.metrics import Meters


class GlmGrpc(HealthMethods):
    """The methods of glm_cluster.v1.Glm and of grpc.health.v1.Health. An error sets the call's status, then raises."""

    def __init__(self, service: Service, ready: Callable[[], Awaitable[bool]], meters: Meters) -> None:
        super().__init__(ready)
        self._service = service
        self._meters = meters

    async def Chat(self, request: glm_pb2.ChatRequest, context: CallContext) -> glm_pb2.ChatResponse:
        """Answer a conversation in one message."""
        with status_of(context), edge(self._meters, "grpc", "chat"):
            request_id = _unique("chatcmpl-")
            parsed = await self._service.read(
                lambda: chat_request(request, stream=False), size_bytes=request.ByteSize()
            )
            prepared = await self._service.prepare_chat(request_id, parsed)
            head = Head(id=request_id, model=parsed.model)
            async with aclosing(self._service.stream(prepared)) as deltas:
                answers = await collect(deltas)
            return chat_response(head, answers, asked(parsed, prepared))

    async def ChatStream(
        self, request: glm_pb2.ChatRequest, context: CallContext
    ) -> AsyncGenerator[glm_pb2.ChatChunk, None]:
        """Answer a conversation token by token."""
        with status_of(context), edge(self._meters, "grpc", "chat_stream"):
            request_id = _unique("chatcmpl-")
            parsed = await self._service.read(lambda: chat_request(request, stream=True), size_bytes=request.ByteSize())
            prepared = await self._service.prepare_chat(request_id, parsed)
            writer = ChunkWriter(Head(id=request_id, model=parsed.model), asked(parsed, prepared))
            async with aclosing(self._service.stream(prepared)) as deltas:
                async for delta in deltas:
                    yield writer.chat(delta)

    async def Generate(
        self, request: glm_pb2.GenerateRequest, context: CallContext
    ) -> AsyncGenerator[glm_pb2.GenerateChunk, None]:
        """Continue prompts token by token."""
        with status_of(context), edge(self._meters, "grpc", "generate"):
            request_id = _unique("cmpl-")
            parsed = await self._service.read(lambda: completion_request(request), size_bytes=request.ByteSize())
            prepared = await self._service.prepare_completion(request_id, parsed)
            writer = ChunkWriter(Head(id=request_id, model=parsed.model), asked(parsed, prepared))
            async with aclosing(self._service.stream(prepared)) as deltas:
                async for delta in deltas:
                    yield writer.continuation(delta)

    async def Classify(self, request: glm_pb2.ClassifyRequest, context: CallContext) -> glm_pb2.ClassifyResponse:
        """Label inputs."""
        with status_of(context), edge(self._meters, "grpc", "classify"):
            parsed = await self._service.read(lambda: classify_request(request), size_bytes=request.ByteSize())
            return await classify_response(await classify(self._service, parsed))

    async def ClassifyTokens(
        self, request: glm_pb2.ClassifyTokensRequest, context: CallContext
    ) -> glm_pb2.ClassifyTokensResponse:
        """Label the tokens of inputs."""
        with status_of(context), edge(self._meters, "grpc", "classify_tokens"):
            parsed = await self._service.read(lambda: classify_tokens_request(request), size_bytes=request.ByteSize())
            answers = await classify_tokens(self._service, parsed)
            return await classify_tokens_response(answers, include_scores=parsed.include_scores)

    async def Embed(self, request: glm_pb2.EmbedRequest, context: CallContext) -> glm_pb2.EmbedResponse:
        """Make vectors of inputs."""
        with status_of(context), edge(self._meters, "grpc", "embeddings"):
            parsed = await self._service.read(lambda: embedding_request(request), size_bytes=request.ByteSize())
            return await embed_response(await embed(self._service, parsed))

    async def ListModels(self, request: glm_pb2.ListModelsRequest, context: CallContext) -> glm_pb2.ListModelsResponse:
        """List what is served."""
        return glm_pb2.ListModelsResponse(models=[model_message(info) for info in self._service.infos])


def _unique(prefix: str) -> str:
    return prefix + secrets.token_hex(12)
