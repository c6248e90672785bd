"""What the server says of itself: what it is made of, what it serves, whether it is well and how busy it is.

Knows facts that it was given, for every wire alike. Refuses to know where they come from, and holds nothing that a
stranger should not read: no paths, no addresses, no keys.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from glm_cluster.records import ModelInfo, Quantization, ReplicaLoad, SamplingDefaults, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """What the server is made of."""

    glm_cluster: str
    python: str
    torch: str
    ray: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """How one served model is run."""

    dtype: str
    device: str
    quantization: Quantization
    tensor_parallel_size: int
    min_replicas: int
    max_replicas: int
    max_running: int  # requests in one step of a replica
    max_waiting: int  # requests queued in a replica before it refuses more
    speculative_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoad:
    """How busy one model's replicas are together, as they last said."""

    model: str
    num_replicas: int  # that can take requests
    num_running: int
    num_waiting: int
    kv_cache_usage: float  # the part of all KV blocks that is in use, 0 to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy the server is."""

    models: Sequence[ModelLoad]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedInfo:
    """One served model and how it is run."""

    id: str
    task: Task
    max_model_len: int
    labels: Sequence[str]  # of a classifier, in the order of its scores
    engine: EngineFacts
    sampling_defaults: SamplingDefaults | None  # of a model that generates


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What the server is made of and what it serves."""

    versions: Versions
    models: Sequence[ServedInfo]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the wires ask. `alive`: every model has an engine. `ready`: each has one whose ranks all made a step."""

    versions: Versions
    engines: Mapping[str, EngineFacts]  # by model
    alive: Callable[[], Awaitable[bool]]
    ready: Callable[[], Awaitable[bool]]
    replica_loads: Callable[[], Awaitable[Mapping[str, Sequence[ReplicaLoad]]]]  # by model, of replicas in service

    def info(self, infos: Sequence[ModelInfo]) -> ServerInfo:
        """What the server is made of and what it serves."""
        models = [
            ServedInfo(
                id=info.name,
                task=info.task,
                max_model_len=info.max_model_len,
                labels=info.labels,
                engine=self.engines[info.name],
                sampling_defaults=info.sampling_defaults if info.task == "generate" else None,
            )
            for info in infos
        ]
        return ServerInfo(versions=self.versions, models=models)

    async def load(self) -> Load:
        """How busy the server is."""
        return Load(models=[_together(model, loads) for model, loads in (await self.replica_loads()).items()])


def _together(model: str, replicas: Sequence[ReplicaLoad]) -> ModelLoad:
    num_blocks = sum(load.num_blocks for load in replicas)
    num_used = num_blocks - sum(load.num_free_blocks for load in replicas)
    return ModelLoad(
        model=model,
        num_replicas=len(replicas),
        num_running=sum(load.num_running for load in replicas),
        num_waiting=sum(load.num_waiting for load in replicas),
        kv_cache_usage=num_used / num_blocks if num_blocks else 0.0,
    )
