"""What a person sees while waiting: progress bars and stages, on stderr so that stdout holds answers only.

Knows rich. Knows nothing of what is being waited for.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

_LINE_S = 5.0  # between lines that say how far something is, where there is no terminal


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


@contextmanager
def weights_bar() -> Iterator[Callable[[int, int], None]]:
    """Give a function (bytes read, bytes to read) that draws a bar of them."""
    with WeightsBar(Console(stderr=True)) as bar:
        yield bar.show


class WeightsBar:
    """Bytes of weights read, as a bar from the first time they are shown."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._task: TaskID | None = None

    def show(self, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._progress.add_task("Loading weights", total=total)
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total)

    def close(self) -> None:
        self._progress.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Stages:
    """The stage that something is in: a spinner on a terminal until it is closed, a line per stage elsewhere.

    While weights are read a bar takes the spinner's place; elsewhere a line every few seconds says how far they are.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._clock = clock
        self._status = self._console.status("starting")
        self._bar: WeightsBar | None = None
        self._said_at = clock()

    def show(self, stage: str) -> None:
        if self._console.is_terminal:
            self._end_bar()
            self._status.update(stage)
            self._status.start()
        else:
            self._say(stage)

    def show_read(self, done: int, total: int) -> None:
        """How many bytes of weights have been read, and how many there are."""
        if self._console.is_terminal:
            self._status.stop()
            self._bar = self._bar or WeightsBar(self._console)
            self._bar.show(done, total)
        elif self._clock() - self._said_at >= _LINE_S:
            self._say(f"{decimal(done)} of {decimal(total)} of weights read")

    def _say(self, line: str) -> None:
        self._said_at = self._clock()
        self._console.print(line, markup=False)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        self._end_bar()
        self._status.stop()

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
