"""Step plans from rank 0 to the other ranks: one sealed zmq message each, sent before rank 0 runs the step itself.

Knows plans and sockets, not what runs them. The ranks find each other through the group's store.
"""

from typing import TYPE_CHECKING, Protocol

import zmq

from glm_cluster.deploy.channel import Seal

if TYPE_CHECKING:  # torch
    from glm_cluster.engine.plan import StepOutput, StepPlan
    from glm_cluster.engine.runner import ModelRunner


class Store(Protocol):
    """What is used of torch's store, and of a dict in its place: `get` waits until the key is set."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...


class GroupExecutor:
    """Runs a plan on every rank of the group: the `Executor` of rank 0."""

    def __init__(self, runner: "ModelRunner", sockets: list[zmq.Socket[bytes]], seal: Seal) -> None:
        self._runner = runner
        self._sockets = sockets
        self._seal = seal

    @classmethod
    def open(
        cls,
        runner: "ModelRunner",
        *,
        context: zmq.Context[zmq.Socket[bytes]],
        store: Store,
        host: str,
        size: int,
        seal: Seal,
    ) -> "GroupExecutor":
        """Listen for each of the other ranks on `host`, and tell them where."""
        sockets = []
        for rank in range(1, size):
            socket = context.socket(zmq.PUSH)
            store.set(_key(rank), f"tcp://{host}:{socket.bind_to_random_port(f'tcp://{host}')}")
            sockets.append(socket)
        return cls(runner, sockets, seal)

    def execute(self, plan: "StepPlan") -> "StepOutput":
        """Send the plan to the others, then run it here."""
        if self._sockets:
            message = self._seal.close(plan.pack())
            for socket in self._sockets:
                socket.send(message)
        return self._runner.execute(plan)


def follow(
    runner: "ModelRunner", *, context: zmq.Context[zmq.Socket[bytes]], store: Store, rank: int, seal: Seal
) -> None:
    """Run rank 0's plans, one after the other, for ever. The process ends with its owner."""
    from glm_cluster.engine.plan import StepPlan

    socket = context.socket(zmq.PULL)
    socket.connect(store.get(_key(rank)).decode())
    while True:
        if (body := seal.open(socket.recv())) is not None:
            runner.execute(StepPlan.unpack(body))


def _key(rank: int) -> str:
    return f"plans/{rank}"
