"""A server's own facts, for applications without a cluster around them."""

from collections.abc import Sequence

from glm_cluster.api.server import EngineFacts, Server, Versions
from glm_cluster.records import ModelInfo, ReplicaLoad

FACTS = EngineFacts(
    dtype="bfloat16",
    device="cpu",
    quantization="int8",
    tensor_parallel_size=2,
    min_replicas=1,
    max_replicas=3,
    max_running=64,
    max_waiting=1024,
    speculative_tokens=7,
)


class WellServer:
    """What a `Server` asks: all well unless told otherwise, and as busy as it is told."""

    def __init__(self) -> None:
        self.is_alive = True
        self.is_ready = True
        self.loads: dict[str, list[ReplicaLoad]] = {}

    async def alive(self) -> bool:
        return self.is_alive

    async def ready(self) -> bool:
        return self.is_ready

    async def replica_loads(self) -> dict[str, list[ReplicaLoad]]:
        return self.loads


def server_of(infos: Sequence[ModelInfo], state: WellServer | None = None) -> Server:
    """The server of these models."""
    state = state or WellServer()
    return Server(
        versions=Versions(glm_cluster="1.2.3", python="3.11", torch="2.11", ray="2.60"),
        engines={info.name: FACTS for info in infos},
        alive=state.alive,
        ready=state.ready,
        replica_loads=state.replica_loads,
    )
