"""GlmIngress: the front's deployment. HTTP and gRPC come in, the wire's own code answers, relays reach the engines.

Nothing is decided here: this puts `api` and `text` together with the inbox, a relay for each model and Serve's two
entrances.
"""

import asyncio
import gc
import platform
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from glm_cluster import __version__
from glm_cluster.config import ClusterConfig, DtypeName, ModelConfig
from glm_cluster.deploy.call_end import replies, reply
from glm_cluster.deploy.fleet import Fleet
from glm_cluster.deploy.inbox import Inbox
from glm_cluster.deploy.meters import RayMeters
from glm_cluster.deploy.pool import PoolClient
from glm_cluster.deploy.relay import Relay
from glm_cluster.model.config import GlmConfig
from glm_cluster.model.generation.sampling_defaults import sampling_defaults
from glm_cluster.records import ModelInfo, ReplicaLoad

if TYPE_CHECKING:
    from fastapi import FastAPI

    from glm_cluster.api.server import EngineFacts, Versions
    from glm_cluster.api.service import ServedModel


TURN_S = 0.0005  # what the event loop waits for its turn while another thread runs Python; 5 ms unless told


@serve.ingress()  # the app is built in the replica, after the constructor
class GlmIngress:
    """One front process."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: ClusterConfig, *replicas: Any, pool: Any = None
    ) -> None:
        from glm_cluster.api.access import Access
        from glm_cluster.api.callers import Callers
        from glm_cluster.api.grpc import GlmGrpc
        from glm_cluster.api.pool import keep_exchanging
        from glm_cluster.api.server import Server
        from glm_cluster.api.service import Service
        from glm_cluster.api.usage_log import UsageLog

        sys.setswitchinterval(TURN_S)
        self._meters = RayMeters()
        self._fleets = [Fleet(handle) for handle in replicas]
        self._inbox = Inbox.open(ray.util.get_node_ip_address())
        self._models = [
            self._served(config, model, fleet) for model, fleet in zip(config.models, self._fleets, strict=True)
        ]
        self._service = Service(models=self._models, meters=self._meters)
        self._server = Server(
            versions=versions(),
            engines={model.name: engine_facts(model, _stored(model)) for model in config.models},
            alive=self._alive,
            ready=self._ready,
            replica_loads=self._loads,
        )
        callers = Callers(None if config.api_keys_file is None else Path(config.api_keys_file))
        self._usage_log = None if config.usage_log is None else UsageLog(Path(config.usage_log), self._meters)
        self._access = Access(meters=self._meters, callers=callers, limits=config.limits, usage_log=self._usage_log)
        self._allowed_origins = config.allowed_origins
        self._watches = [asyncio.create_task(callers.watch())]
        if pool is not None:
            exchange = PoolClient(pool).exchange
            self._watches.append(asyncio.create_task(keep_exchanging(self._access.news, self._access.hear, exchange)))
        self._grpc = GlmGrpc(self._service, self._server, self._meters, self._access)
        gc.collect()
        gc.freeze()  # what is here now stays, and each full collection would hold the loop up 60 ms to find that out

    def _served(self, config: ClusterConfig, model: ModelConfig, fleet: Fleet) -> "ServedModel":
        from glm_cluster.api.desk import GrammarDesk
        from glm_cluster.api.service import ServedModel
        from glm_cluster.api.window import EncodeWindow
        from glm_cluster.text.own_templates import served_template
        from glm_cluster.text.tokenizer import Tokenizer
        from glm_cluster.text.tools.dialect import dialect_of

        directory = Path(model.engine.model)
        stored = _stored(model)
        tokenizer = Tokenizer.from_directory(directory)
        tokenizer.check_fits(vocab_size=stored.vocab_size, special_ids=stored.special_ids, where=directory)
        relay = Relay(
            fleet.submit,
            self._inbox,
            max_migrations=config.max_migrations,
            request_timeout_s=config.request_timeout_s,
            meters=self._meters,
        )
        generates = model.engine.task == "generate"
        template = dialect = None
        if generates:
            template = served_template(
                directory, tokenizer, model_type=stored.model_type, tool_parser=model.tool_parser
            )
            dialect = dialect_of(
                template.source,
                tokenizer.special_ids,
                tool_parser=model.tool_parser,
                reasoning_parser=model.reasoning_parser,
            )
        return ServedModel(
            info=replace(
                model_info(model, stored, created=int((directory / "config.json").stat().st_mtime)),
                max_prompt_tokens=config.limits.max_prompt_tokens,
                max_output_tokens=config.limits.max_output_tokens,
            ),
            tokenizer=tokenizer,
            template=template,
            dialect=dialect,
            window=EncodeWindow(tokenizer, self._meters),
            desk=GrammarDesk(tokenizer.special_ids) if generates else None,
            generator=relay if generates else None,
            encoder=None if generates else relay,
        )

    async def _alive(self) -> bool:
        """Whether every model has a replica with an engine."""
        return all(await asyncio.gather(*(fleet.alive() for fleet in self._fleets)))

    async def _ready(self) -> bool:
        """Whether every model has a replica all of whose ranks can make a step now."""
        return all(await asyncio.gather(*(fleet.ready() for fleet in self._fleets)))

    async def _loads(self) -> Mapping[str, Sequence[ReplicaLoad]]:
        """What the replicas of each model last said of themselves."""
        loads = await asyncio.gather(*(fleet.loads() for fleet in self._fleets))
        return {model.info.name: load for model, load in zip(self._models, loads, strict=True)}

    def __serve_build_asgi_app__(self) -> "FastAPI":  # the name Serve looks for
        from glm_cluster.api.http import build_http_app

        return build_http_app(
            self._service, self._server, self._meters, self._access, allowed_origins=self._allowed_origins
        )

    async def __del__(self) -> None:
        """Called by Serve on an orderly stop."""
        self._grpc.stop()
        for watch in self._watches:
            watch.cancel()
        for model in self._models:
            model.window.close()
            if model.desk is not None:
                model.desk.close()
        await self._inbox.close()
        if self._usage_log is not None:
            await asyncio.to_thread(self._usage_log.close)

    async def Chat(self, request: Any, grpc_context: Any) -> Any:
        """Serve finds gRPC methods by name."""
        return await reply(self._grpc.Chat, request, grpc_context)

    async def ChatStream(self, request: Any, grpc_context: Any) -> AsyncIterator[Any]:
        """As above, streaming."""
        async with aclosing(replies(self._grpc.ChatStream, request, grpc_context)) as messages:
            async for message in messages:
                yield message

    async def Generate(self, request: Any, grpc_context: Any) -> AsyncIterator[Any]:
        """As above, streaming."""
        async with aclosing(replies(self._grpc.Generate, request, grpc_context)) as messages:
            async for message in messages:
                yield message

    async def Classify(self, request: Any, grpc_context: Any) -> Any:
        """As above."""
        return await reply(self._grpc.Classify, request, grpc_context)

    async def ClassifyTokens(self, request: Any, grpc_context: Any) -> Any:
        """As above."""
        return await reply(self._grpc.ClassifyTokens, request, grpc_context)

    async def Embed(self, request: Any, grpc_context: Any) -> Any:
        """As above."""
        return await reply(self._grpc.Embed, request, grpc_context)

    async def ListModels(self, request: Any, grpc_context: Any) -> Any:
        """As above."""
        return await reply(self._grpc.ListModels, request, grpc_context)

    async def GetModel(self, request: Any, grpc_context: Any) -> Any:
        """As above."""
        return await reply(self._grpc.GetModel, request, grpc_context)

    async def Tokenize(self, request: Any, grpc_context: Any) -> Any:
        """As above."""
        return await reply(self._grpc.Tokenize, request, grpc_context)

    async def Detokenize(self, request: Any, grpc_context: Any) -> Any:
        """As above."""
        return await reply(self._grpc.Detokenize, request, grpc_context)

    async def GetServerInfo(self, request: Any, grpc_context: Any) -> Any:
        """As above."""
        return await reply(self._grpc.GetServerInfo, request, grpc_context)

    async def GetLoad(self, request: Any, grpc_context: Any) -> Any:
        """As above."""
        return await reply(self._grpc.GetLoad, request, grpc_context)

    async def Check(self, request: Any, grpc_context: Any) -> Any:
        """grpc.health.v1."""
        return await reply(self._grpc.Check, request, grpc_context)

    async def List(self, request: Any, grpc_context: Any) -> Any:
        """grpc.health.v1."""
        return await reply(self._grpc.List, request, grpc_context)

    async def Watch(self, request: Any, grpc_context: Any) -> AsyncIterator[Any]:
        """grpc.health.v1, streaming."""
        async with aclosing(replies(self._grpc.Watch, request, grpc_context)) as messages:
            async for message in messages:
                yield message


def versions() -> "Versions":
    """What this process runs on, found without importing torch."""
    from glm_cluster.api.server import Versions

    return Versions(
        glm_cluster=__version__,
        python=platform.python_version(),
        torch=metadata.version("torch"),
        ray=ray.__version__,
    )


def _stored(model: ModelConfig) -> GlmConfig:
    return GlmConfig.from_directory(Path(model.engine.model))


def engine_facts(model: ModelConfig, stored: GlmConfig) -> "EngineFacts":
    """How the model is run, by its settings and its config.json alone."""
    from glm_cluster.api.server import EngineFacts

    engine = model.engine
    return EngineFacts(
        dtype=_dtype(engine.dtype, stored),
        device=engine.device,
        quantization=engine.quantization,
        tensor_parallel_size=engine.tp,
        min_replicas=model.min_replicas,
        max_replicas=model.max_replicas,
        max_running=engine.max_running,
        max_waiting=engine.max_waiting,
        speculative_tokens=engine.speculative_tokens,
    )


def _dtype(asked: DtypeName, stored: GlmConfig) -> str:
    """What `auto` means, where config.json says it; half precision is computed in bfloat16."""
    if asked != "auto" or stored.dtype is None:
        return asked
    return "bfloat16" if stored.dtype == "float16" else stored.dtype


def model_info(model: ModelConfig, stored: GlmConfig, *, created: int) -> ModelInfo:
    """What the front must know of the model, from its config.json and, where it has one, generation_config.json."""
    classifies = model.engine.task in ("classify", "classify-tokens")
    return ModelInfo(
        name=model.name,
        vocab_size=stored.vocab_size,
        max_model_len=min(model.engine.max_model_len or stored.context_limit, stored.context_limit),
        eos_token_ids=stored.eos_token_ids,
        task=model.engine.task,
        labels=tuple(stored.id2label[index] for index in range(stored.num_labels)) if classifies else (),
        problem_type=stored.problem_type if model.engine.task == "classify" else None,
        pad_token_id=stored.pad_token_id,
        created=created,
        sampling_defaults=sampling_defaults(model),
    )
