"""The engine itself as a generator, stepped by whoever reads from it."""

from collections.abc import AsyncGenerator

from glm_cluster.engine.engine import Engine
from glm_cluster.records import GenerationRequest, TokenEvent


class Direct:
    """One engine, and the requests that it saw."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.seen: list[GenerationRequest] = []

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """The prompt of each."""
        return [request.prompt for request in self.seen]

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """The events of one request, if nobody else asks at the same time."""
        self.seen.append(request)
        self._engine.add(request)
        while self._engine.has_work:
            for event in self._engine.step():
                yield event
