"""What a person sees while waiting: progress bars and stages, on stderr so that stdout holds answers only.

Knows rich. Knows nothing of what is being waited for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, TaskID


@contextmanager
def progress_bars() -> Iterator[Callable[[str, float], None]]:
    """Give a function (stage, fraction done) that draws one bar per stage."""
    tasks: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True)) as progress:

        def show(stage: str, fraction: float) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=1.0)
            progress.update(tasks[stage], completed=fraction)

        yield show


class Stages:
    """The stage that something is in: a spinner on a terminal until it is closed, a line per stage elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("starting")

    def show(self, stage: str) -> None:
        if self._console.is_terminal:
            self._status.update(stage)
            self._status.start()
        else:
            self._console.print(stage, markup=False)

    def close(self) -> None:
        self._status.stop()

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
