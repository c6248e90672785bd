"""GlmIngress: the front's deployment. HTTP and gRPC come in, the wire's own code answers, a relay reaches the engines.

Nothing is decided here: this puts `api` and `text` together with the inbox, the relay and Serve's two entrances.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from glm_cluster.config import ClusterConfig
from glm_cluster.deploy.fleet import Fleet
from glm_cluster.deploy.inbox import Inbox
from glm_cluster.deploy.meters import RayMeters
from glm_cluster.deploy.relay import Relay
from glm_cluster.model.config import GlmConfig
from glm_cluster.records import ModelInfo

if TYPE_CHECKING:
    from fastapi import FastAPI


@serve.ingress()  # the app is built in the replica, after the constructor
class GlmIngress:
    """One front process."""

    async def __init__(self, config: ClusterConfig, replicas: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        from glm_cluster.api.grpc import GlmGrpc
        from glm_cluster.api.service import Service
        from glm_cluster.api.window import EncodeWindow
        from glm_cluster.text.chat import ChatTemplate
        from glm_cluster.text.tokenizer import Tokenizer

        directory = Path(config.engine.model)
        tokenizer = Tokenizer.from_directory(directory)
        self._meters = RayMeters()
        self._fleet = Fleet(replicas)
        self._inbox = Inbox.open(ray.util.get_node_ip_address())
        self._encoder = EncodeWindow(tokenizer, self._meters)
        self._service = Service(
            info=model_info(config, directory),
            tokenizer=tokenizer,
            template=ChatTemplate.from_directory(directory, tokenizer),
            generator=Relay(
                self._fleet.submit,
                self._inbox,
                max_migrations=config.max_migrations,
                request_timeout_s=config.request_timeout_s,
                meters=self._meters,
            ),
            encoder=self._encoder,
            meters=self._meters,
        )
        self._grpc = GlmGrpc(self._service, self._fleet.ready, self._meters)

    def __serve_build_asgi_app__(self) -> "FastAPI":  # the name Serve looks for
        from glm_cluster.api.http import build_http_app

        return build_http_app(self._service, self._fleet.ready, self._meters)

    async def __del__(self) -> None:
        """Called by Serve on an orderly stop."""
        self._encoder.close()
        await self._inbox.close()

    async def Chat(self, request: Any, grpc_context: Any) -> Any:
        """Serve finds gRPC methods by name."""
        return await self._grpc.Chat(request, grpc_context)

    async def ChatStream(self, request: Any, grpc_context: Any) -> AsyncIterator[Any]:
        """As above, streaming."""
        async with aclosing(self._grpc.ChatStream(request, grpc_context)) as messages:
            async for message in messages:
                yield message

    async def Generate(self, request: Any, grpc_context: Any) -> AsyncIterator[Any]:
        """As above, streaming."""
        async with aclosing(self._grpc.Generate(request, grpc_context)) as messages:
            async for message in messages:
                yield message

    async def ListModels(self, request: Any, grpc_context: Any) -> Any:
        """As above."""
        return await self._grpc.ListModels(request, grpc_context)

    async def Check(self, request: Any, grpc_context: Any) -> Any:
        """grpc.health.v1."""
        return await self._grpc.Check(request, grpc_context)

    async def Watch(self, request: Any, grpc_context: Any) -> AsyncIterator[Any]:
        """grpc.health.v1, streaming."""
        async with aclosing(self._grpc.Watch(request, grpc_context)) as messages:
            async for message in messages:
                yield message


def model_info(config: ClusterConfig, directory: Path) -> ModelInfo:
    """What the front must know of the model, from its config.json alone."""
    model = GlmConfig.from_directory(directory)
    limit = config.engine.max_model_len or model.context_limit
    return ModelInfo(
        name=config.model_name,
        vocab_size=model.vocab_size,
        max_model_len=min(limit, model.context_limit),
        eos_token_ids=model.eos_token_ids,
        created=int((directory / "config.json").stat().st_mtime),
    )
