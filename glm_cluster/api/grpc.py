"""The gRPC wire: `glm_cluster.v1.Glm` over a `Service`. Knows calls, nothing of models or engines.

Ray Serve sends a call to the method of the same name, so the methods carry the names of the .proto file.
"""

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing

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
    chat_chunk,
    chat_request,
    chat_response,
    completion_request,
    generate_chunk,
    model_message,
)
from glm_cluster.api.proto import glm_pb2
from glm_cluster.api.replies import Head
from glm_cluster.api.server import Server
from glm_cluster.api.server_messages import (
    detokenize_request,
    load_message,
    model_name,
    server_info_message,
    tokenize_request,
    tokenize_response,
)
from glm_cluster.api.service import Service, collect
from glm_cluster.api.tokenization import detokenize, tokenize
from glm_cluster.metrics import Meters


class GlmGrpc(HealthMethods):
    """The methods of glm_cluster.v1.Glm and of grpc.health.v1.Health. An error sets the call's status, then raises."""

    def __init__(self, service: Service, server: Server, meters: Meters) -> None:
        super().__init__(server.ready)
        self._service = service
        self._server = server
        self._meters = meters

    async def Chat(self, request: glm_pb2.ChatRequest, context: CallContext) -> glm_pb2.ChatResponse:
        """Answer a conversation in one message."""
        with status_of(context), edge(self._meters, "grpc", "chat"):
            request_id = _unique("chatcmpl-")
            parsed = await self._service.read(lambda: chat_request(request), size_bytes=request.ByteSize())
            prepared = await self._service.prepare_chat(request_id, parsed)
            head = Head(id=request_id, model=parsed.model)
            async with aclosing(self._service.stream(prepared)) as deltas:
                answer = await collect(deltas)
            return chat_response(head, answer, prepared.generation.prompt if parsed.return_token_ids else None)

    async def ChatStream(
        self, request: glm_pb2.ChatRequest, context: CallContext
    ) -> AsyncGenerator[glm_pb2.ChatChunk, None]:
        """Answer a conversation token by token."""
        with status_of(context), edge(self._meters, "grpc", "chat_stream"):
            request_id = _unique("chatcmpl-")
            parsed = await self._service.read(lambda: chat_request(request), size_bytes=request.ByteSize())
            prepared = await self._service.prepare_chat(request_id, parsed)
            head = Head(id=request_id, model=parsed.model)
            prompt_ids = prepared.generation.prompt if parsed.return_token_ids else None
            async with aclosing(self._service.stream(prepared)) as deltas:
                async for delta in deltas:
                    yield chat_chunk(head, delta, prompt_ids, parsed.return_token_ids)
                    prompt_ids = None

    async def Generate(
        self, request: glm_pb2.GenerateRequest, context: CallContext
    ) -> AsyncGenerator[glm_pb2.GenerateChunk, None]:
        """Continue a prompt token by token."""
        with status_of(context), edge(self._meters, "grpc", "generate"):
            request_id = _unique("cmpl-")
            parsed = await self._service.read(lambda: completion_request(request), size_bytes=request.ByteSize())
            prepared = await self._service.prepare_completion(request_id, parsed)
            head = Head(id=request_id, model=parsed.model)
            prompt_ids = prepared.generation.prompt if parsed.return_token_ids else None
            async with aclosing(self._service.stream(prepared)) as deltas:
                async for delta in deltas:
                    yield generate_chunk(head, delta, prompt_ids, parsed.return_token_ids)
                    prompt_ids = None

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

    async def GetModel(self, request: glm_pb2.GetModelRequest, context: CallContext) -> glm_pb2.Model:
        """Describe one served model."""
        with status_of(context):
            return model_message(self._service.named(model_name(request)).info)

    async def Tokenize(self, request: glm_pb2.TokenizeRequest, context: CallContext) -> glm_pb2.TokenizeResponse:
        """Turn a text or a conversation into token ids."""
        with status_of(context), edge(self._meters, "grpc", "tokenize"):
            parsed = await self._service.read(lambda: tokenize_request(request), size_bytes=request.ByteSize())
            return await tokenize_response(await tokenize(self._service, parsed))

    async def Detokenize(self, request: glm_pb2.DetokenizeRequest, context: CallContext) -> glm_pb2.DetokenizeResponse:
        """Turn token ids into text."""
        with status_of(context), edge(self._meters, "grpc", "detokenize"):
            parsed = await self._service.read(lambda: detokenize_request(request), size_bytes=request.ByteSize())
            return glm_pb2.DetokenizeResponse(prompt=await detokenize(self._service, parsed))

    async def GetServerInfo(self, request: glm_pb2.GetServerInfoRequest, context: CallContext) -> glm_pb2.ServerInfo:
        """Say what the server is made of."""
        return server_info_message(self._server.info(self._service.infos))

    async def GetLoad(self, request: glm_pb2.GetLoadRequest, context: CallContext) -> glm_pb2.Load:
        """Say how busy the server is."""
        return load_message(await self._server.load())


def _unique(prefix: str) -> str:
    return prefix + secrets.token_hex(12)
