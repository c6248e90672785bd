"""The one way in, for both wires: who asks, whether there is room for one more, and the books of each request.

Knows callers, budgets, limits and the usage log. Refuses to know what is asked and how it is answered.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Literal

from glm_cluster.api.account import Account
from glm_cluster.api.budgets import Budgets, Spent
from glm_cluster.api.callers import Caller, Callers
from glm_cluster.api.edge import edge
from glm_cluster.api.ledger import Slot
from glm_cluster.api.usage_log import UsageLog
from glm_cluster.config import Limits
from glm_cluster.errors import Overloaded
from glm_cluster.metrics import Meters


class Access:
    """What all requests of one front process have to pass."""

    def __init__(
        self,
        *,
        meters: Meters,
        callers: Callers | None = None,
        limits: Limits | None = None,
        usage_log: UsageLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.callers = callers or Callers()
        self.limits = limits or Limits()
        self._meters = meters
        self._usage_log = usage_log
        self._budgets = Budgets(clock)
        self._num_open = 0

    @contextmanager
    def request(self, wire: Literal["http", "grpc"], route: str, caller: Caller) -> Iterator[Account]:
        """Hold a place for the request inside, count its fate, and keep its account."""
        account = self._account(wire, route, caller)
        with account.kept(), edge(self._meters, wire, route), self._place(caller):
            yield account

    def news(self) -> dict[str, Spent]:
        """What other fronts have to hear of what was spent here since this was last asked."""
        return self._budgets.news()

    def hear(self, elsewhere: Mapping[str, Spent]) -> None:
        """Charge what was spent at other fronts."""
        self._budgets.hear(self.callers.keys, elsewhere)

    @contextmanager
    def _place(self, caller: Caller) -> Iterator[None]:
        most = self.limits.max_concurrent_requests
        if most is not None and self._num_open >= most:
            raise Overloaded(f"{self._num_open} requests are open, all that this server takes; try again shortly")
        key = caller.key
        with nullcontext() if key is None else self._budgets.of(key).request(key):
            self._num_open += 1
            try:
                yield
            finally:
                self._num_open -= 1

    def _account(self, wire: str, route: str, caller: Caller) -> Account:
        key = caller.key
        budget = None if key is None else self._budgets.of(key)
        return Account(
            caller=caller,
            wire=wire,
            route=route,
            max_choices=self.limits.max_choices,
            reserve=lambda amount: budget.reserve_tokens(key, amount) if budget and key else 0,
            settle=lambda reserved, used: budget.settle_tokens(reserved, used) if budget else None,
            enter=lambda record: self._usage_log.enter(record) if self._usage_log else Slot.unkept(),
            write=lambda record, slot: self._usage_log.put(record, slot) if self._usage_log else None,
        )
