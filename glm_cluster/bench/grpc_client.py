"""A client of glm_cluster.v1.Glm/Generate. Knows grpc and our typed wire."""

import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from glm_cluster.api.proto import glm_pb2
from glm_cluster.bench.order import Order
from glm_cluster.bench.prompts import Prompt
from glm_cluster.bench.timing import Timing
from glm_cluster.errors import ConfigError, EngineUnavailable

SCHEME = "grpc://"
_SERVICE = "/glm_cluster.v1.Glm"
Generate: TypeAlias = Callable[[glm_pb2.GenerateRequest], AsyncIterable[glm_pb2.GenerateChunk]]


@dataclass(frozen=True, slots=True)
class GrpcClient:
    """One server's Generate."""

    generate: Generate
    model: str
    order: Order

    async def ask(self, prompt: Prompt, due_s: float) -> Timing:
        """Stream one answer and say when its parts came."""
        arrivals: list[float] = []
        usage, num_ids, error = glm_pb2.Usage(), 0, None
        try:
            async for chunk in self.generate(self._request(prompt)):
                if chunk.text or chunk.token_ids or (chunk.finish_reason and not arrivals):
                    arrivals.append(time.perf_counter())
                num_ids += len(chunk.token_ids)
                if chunk.HasField("usage"):
                    usage = chunk.usage
        except grpc.aio.AioRpcError as refusal:
            error = f"{refusal.code().name}: {refusal.details()}"
        return Timing(
            due_s=due_s,
            arrivals_s=tuple(arrivals),
            end_s=time.perf_counter(),
            num_tokens=usage.completion_tokens or num_ids or len(arrivals),
            num_prompt_tokens=usage.prompt_tokens or (0 if isinstance(prompt, str) else len(prompt)),
            error=error,
        )

    def _request(self, prompt: Prompt) -> glm_pb2.GenerateRequest:
        request = glm_pb2.GenerateRequest(
            model=self.model,
            sampling=glm_pb2.Sampling(temperature=0, ignore_eos=self.order.ignore_eos),
            max_tokens=self.order.max_tokens,
        )
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.token_ids.ids.extend(prompt)
        if self.order.return_token_ids:
            request.return_token_ids = True
        return request


@asynccontextmanager
async def open_grpc_client(url: str, order: Order) -> AsyncIterator[GrpcClient]:
    """Connect, and find out what the server calls its model unless the order says so."""
    async with grpc.aio.insecure_channel(url.removeprefix(SCHEME).rstrip("/")) as channel:
        generate = channel.unary_stream(
            f"{_SERVICE}/Generate",
            request_serializer=glm_pb2.GenerateRequest.SerializeToString,
            response_deserializer=glm_pb2.GenerateChunk.FromString,
        )
        yield GrpcClient(generate, order.model or await _first_model(channel, url), order)


async def _first_model(channel: grpc.aio.Channel, url: str) -> str:
    list_models = channel.unary_unary(
        f"{_SERVICE}/ListModels",
        request_serializer=glm_pb2.ListModelsRequest.SerializeToString,
        response_deserializer=glm_pb2.ListModelsResponse.FromString,
    )
    try:
        listed = await list_models(glm_pb2.ListModelsRequest())
    except grpc.aio.AioRpcError as error:
        raise EngineUnavailable(f"nothing answers at {url} ({error.details()}); start the server first") from error
    names = [model.id for model in listed.models if model.task in (glm_pb2.TASK_GENERATE, glm_pb2.TASK_UNSPECIFIED)]
    if not names:
        raise ConfigError(f"no model at {url} answers in text; measure another server")
    return str(names[0])
