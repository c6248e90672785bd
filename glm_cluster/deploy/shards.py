"""One rank of a group: an actor that joins its group, loads its shard and works until it is killed.

Rank 0 turns the engine; the others follow its plans. Everything heavy is imported in the actor's own process.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import ray
import zmq

from glm_cluster.config import EngineConfig
from glm_cluster.deploy.channel import ReturnAddress, Seal
from glm_cluster.deploy.read_progress import ReadReporter
from glm_cluster.model.threads import prepare_threads, share_cores

if TYPE_CHECKING:  # torch
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from glm_cluster.engine.runner import ModelRunner
    from glm_cluster.text.grammar.workshop import Workshop


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A rank's place in its group."""

    engine: EngineConfig
    rank: int
    host_ranks: int  # ranks, of this group and of those beside it, that share this rank's host
    epoch: str
    key: bytes = field(repr=False)  # of the group's seal
    orders: str  # the replica's endpoints, for rank 0
    reports: str
    progress_to: ReturnAddress | None  # who hears how far this rank is while it loads


class Shard:
    """The process of one rank."""

    def __init__(self, seat: Seat) -> None:
        prepare_threads()
        import glm_cluster.engine.runner  # noqa: F401  every rank imports torch at once, not one after rank 0's store

        self._seat = seat
        self._host = ray.util.get_node_ip_address()
        self._seal = Seal(seat.key)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._store: TCPStore | None = None

    def open_store(self) -> tuple[str, int]:
        """Rank 0: listen for the group's other ranks, and say where."""
        from glm_cluster.model.ranks import open_store

        self._store = open_store(self._host)
        return self._host, self._store.port

    def run(self, store_address: tuple[str, int]) -> None:
        """Join, load, work. Ends by raising, or with the process."""
        from glm_cluster.deploy.grammars import open_workshop
        from glm_cluster.engine.runner import ModelRunner
        from glm_cluster.model.ranks import Ranks, connect_store, resolve_device

        seat = self._seat
        device = resolve_device(seat.engine.device)
        if device == "cpu":
            share_cores(seat.host_ranks)
        store = self._store or connect_store(*store_address)
        ranks = Ranks.join(rank=seat.rank, size=seat.engine.tp, store=store, device=device, host=self._host)
        workshop = open_workshop(seat.engine) if seat.rank == 0 else None
        unused = unused_token_ids(seat.engine) if seat.rank == 0 else ()  # where tokens are sampled
        with ReadReporter(self._context, seat.progress_to, f"{seat.epoch}/{seat.rank}") as on_read:
            runner = ModelRunner.load(
                seat.engine, ranks, on_read=on_read, host_ranks=seat.host_ranks, unused_token_ids=unused
            )
        if seat.rank == 0:
            self._lead(runner, store, workshop)
        else:
            self._follow(runner, store)

    def _lead(self, runner: "ModelRunner", store: "TCPStore", workshop: "Workshop | None") -> None:
        from glm_cluster.deploy.broadcast import GroupExecutor
        from glm_cluster.deploy.core import EngineLoop, Outlets
        from glm_cluster.engine.engine import Engine

        seat = self._seat
        executor = GroupExecutor.open(
            runner, context=self._context, store=store, host=self._host, size=seat.engine.tp, seal=self._seal
        )
        loop = EngineLoop(
            Engine.assemble(seat.engine, runner.limits, executor, workshop.follow if workshop else None),
            orders=self._connect(zmq.PULL, seat.orders),
            reports=self._connect(zmq.PUSH, seat.reports),
            outlets=Outlets(self._context, seat.epoch),
            seal=self._seal,
        )
        while True:
            loop.turn()

    def _follow(self, runner: "ModelRunner", store: "TCPStore") -> None:
        from glm_cluster.deploy.broadcast import follow

        follow(runner, context=self._context, store=store, rank=self._seat.rank, seal=self._seal)

    def _connect(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.connect(endpoint)
        return socket


def unused_token_ids(engine: EngineConfig) -> tuple[tuple[int, int], ...]:
    """The half-open ranges of ids that the checkpoint's tokenizer has no token for; none where it has no tokenizer."""
    from glm_cluster.model.config import GlmConfig
    from glm_cluster.text.tokenizer_file import TokenizerFile, has_tokenizer

    directory = Path(engine.model)
    if engine.task != "generate" or not has_tokenizer(directory):
        return ()
    return TokenizerFile.from_directory(directory).unused_ids(GlmConfig.from_directory(directory).vocab_size)
