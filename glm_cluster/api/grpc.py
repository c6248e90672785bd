"""The gRPC wire: `glm_cluster.v1.Glm` over a `Service`. Knows calls, nothing of models or engines.

Ray Serve sends a call to the method of the same name, so the methods carry the names of the .proto file.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

from google.protobuf.message import Message

from glm_cluster.api.access import Access
from glm_cluster.api.answers import Delta, collect
from glm_cluster.api.calls import KnownCall, guarded, status_of
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
from glm_cluster.api.schema import Body
from glm_cluster.api.server import Server
from glm_cluster.api.server_messages import (
    detokenize_request,
    load_message,
    model_name,
    server_info_message,
    tokenize_request,
    tokenize_response,
)
from glm_cluster.api.service import Service
from glm_cluster.api.servicer import GLM
from glm_cluster.api.tokenization import detokenize, tokenize
from glm_cluster.api.window import LOOP_BYTES, EncodeWindow
from glm_cluster.metrics import Meters

M = TypeVar("M")
B = TypeVar("B", bound=Body)


@guarded(*(method.name for method in GLM.methods))
class GlmGrpc(HealthMethods):
    """The methods of glm_cluster.v1.Glm and of grpc.health.v1.Health. An error sets the call's status, then raises.

    A method of Glm runs only for a caller who may call.
    """

    def __init__(self, service: Service, server: Server, meters: Meters, access: Access | None = None) -> None:
        super().__init__(server.ready, meters)
        self._service = service
        self._server = server
        self.access = access or Access(meters=meters)

    async def _read(self, parse: Callable[[], B], request: Message, context: KnownCall) -> B:
        """What `parse` makes of a request, which is for a model that its sender may ask."""
        parsed = await self._service.read(parse, size_bytes=request.ByteSize())
        context.caller.check_model(parsed.model)
        return parsed

    async def Chat(self, request: glm_pb2.ChatRequest, context: KnownCall) -> glm_pb2.ChatResponse:
        """Answer a conversation in one message."""
        with status_of(context), self.access.request("grpc", "chat", context.caller) as account:
            request_id = "chatcmpl-" + context.caller.request_id
            parsed = await self._read(lambda: chat_request(request, stream=False), request, context)
            checked = await self._service.prepare_chat(request_id, parsed)
            prepared = account.admit_generations(checked, model=parsed.model)
            head = Head(id=request_id, model=parsed.model)
            stream = self._service.stream(prepared)
            async with aclosing(stream), aclosing(account.metered(stream, streamed=False)) as deltas:
                answers = await collect(deltas)
            account.delivered()
            told = asked(parsed, prepared)
            return await prepared.window.off_loop(
                lambda: chat_response(head, answers, told),
                size_bytes=told.size_bytes(answers.choices, num_prompts=1),
            )

    async def ChatStream(
        self, request: glm_pb2.ChatRequest, context: KnownCall
    ) -> AsyncGenerator[glm_pb2.ChatChunk, None]:
        """Answer a conversation token by token."""
        with status_of(context), self.access.request("grpc", "chat_stream", context.caller) as account:
            request_id = "chatcmpl-" + context.caller.request_id
            parsed = await self._read(lambda: chat_request(request, stream=True), request, context)
            checked = await self._service.prepare_chat(request_id, parsed)
            prepared = account.admit_generations(checked, model=parsed.model)
            writer = ChunkWriter(Head(id=request_id, model=parsed.model), asked(parsed, prepared))
            stream = self._service.stream(prepared)
            async with aclosing(stream), aclosing(account.metered(stream, streamed=True)) as deltas:
                async for delta in deltas:
                    yield await _written(writer.chat, delta, writer.size_bytes(delta), prepared.window)

    async def Generate(
        self, request: glm_pb2.GenerateRequest, context: KnownCall
    ) -> AsyncGenerator[glm_pb2.GenerateChunk, None]:
        """Continue prompts token by token."""
        with status_of(context), self.access.request("grpc", "generate", context.caller) as account:
            request_id = "cmpl-" + context.caller.request_id
            parsed = await self._read(lambda: completion_request(request), request, context)
            checked = await self._service.prepare_completion(request_id, parsed)
            prepared = account.admit_generations(checked, model=parsed.model)
            writer = ChunkWriter(Head(id=request_id, model=parsed.model), asked(parsed, prepared))
            stream = self._service.stream(prepared)
            async with aclosing(stream), aclosing(account.metered(stream, streamed=True)) as deltas:
                async for delta in deltas:
                    yield await _written(writer.continuation, delta, writer.size_bytes(delta), prepared.window)

    async def Classify(self, request: glm_pb2.ClassifyRequest, context: KnownCall) -> glm_pb2.ClassifyResponse:
        """Label inputs."""
        with status_of(context), self.access.request("grpc", "classify", context.caller) as account:
            parsed = await self._read(lambda: classify_request(request), request, context)
            return await classify_response(await classify(self._service, parsed, account))

    async def ClassifyTokens(
        self, request: glm_pb2.ClassifyTokensRequest, context: KnownCall
    ) -> glm_pb2.ClassifyTokensResponse:
        """Label the tokens of inputs."""
        with status_of(context), self.access.request("grpc", "classify_tokens", context.caller) as account:
            parsed = await self._read(lambda: classify_tokens_request(request), request, context)
            answers = await classify_tokens(self._service, parsed, account)
            return await classify_tokens_response(answers, include_scores=parsed.include_scores)

    async def Embed(self, request: glm_pb2.EmbedRequest, context: KnownCall) -> glm_pb2.EmbedResponse:
        """Make vectors of inputs."""
        with status_of(context), self.access.request("grpc", "embeddings", context.caller) as account:
            parsed = await self._read(lambda: embedding_request(request), request, context)
            return await embed_response(await embed(self._service, parsed, account))

    async def ListModels(self, request: glm_pb2.ListModelsRequest, context: KnownCall) -> glm_pb2.ListModelsResponse:
        """List what is served."""
        with self._edge("models", context):
            return glm_pb2.ListModelsResponse(models=[model_message(info) for info in self._service.infos])

    async def GetModel(self, request: glm_pb2.GetModelRequest, context: KnownCall) -> glm_pb2.Model:
        """Describe one served model."""
        with self._edge("model", context):
            return model_message(self._service.named(model_name(request)).info)

    async def Tokenize(self, request: glm_pb2.TokenizeRequest, context: KnownCall) -> glm_pb2.TokenizeResponse:
        """Turn a text or a conversation into token ids."""
        with status_of(context), self.access.request("grpc", "tokenize", context.caller):
            parsed = await self._read(lambda: tokenize_request(request), request, context)
            return await tokenize_response(await tokenize(self._service, parsed))

    async def Detokenize(self, request: glm_pb2.DetokenizeRequest, context: KnownCall) -> glm_pb2.DetokenizeResponse:
        """Turn token ids into text."""
        with status_of(context), self.access.request("grpc", "detokenize", context.caller):
            parsed = await self._read(lambda: detokenize_request(request), request, context)
            return glm_pb2.DetokenizeResponse(prompt=await detokenize(self._service, parsed))

    async def GetServerInfo(self, request: glm_pb2.GetServerInfoRequest, context: KnownCall) -> glm_pb2.ServerInfo:
        """Say what the server is made of."""
        with self._edge("server_info", context):
            return server_info_message(self._server.info(self._service.infos))

    async def GetLoad(self, request: glm_pb2.GetLoadRequest, context: KnownCall) -> glm_pb2.Load:
        """Say how busy the server is."""
        with self._edge("load", context):
            return load_message(await self._server.load())


async def _written(write: Callable[[Delta], M], delta: Delta, size_bytes: int, window: EncodeWindow) -> M:
    """The chunk of a delta, which may have much to tell."""
    if size_bytes <= LOOP_BYTES:
        return write(delta)
    return await window.off_loop(lambda: write(delta), size_bytes=size_bytes)
