"""What a person sees while waiting: on a terminal, and in a log."""

from io import StringIO

import pytest
from rich.console import Console

from glm_cluster.terminal import Stages, WeightsBar


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def screen() -> Console:
    return Console(file=StringIO(), force_terminal=True, width=100, legacy_windows=False)


@pytest.fixture
def log() -> Console:
    return Console(file=StringIO(), force_terminal=False, width=100)


def text(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_bytes_of_bytes(screen: Console) -> None:
    with Stages(screen) as stages:
        stages.show("Loading demo")
        stages.show_read(500_000_000, 2_000_000_000)
        stages.show_read(2_000_000_000, 2_000_000_000)
        stages.show("Waiting for the first answer")
    shown = text(screen)
    assert shown.index("Loading demo") < shown.index("2.0/2.0 GB") < shown.index("Waiting for the first answer")


def test_a_bar_that_was_begun_ends_with_the_stages(screen: Console) -> None:
    stages = Stages(screen)
    stages.show_read(1, 2)
    stages.close()
    shown = text(screen)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is back"


def test_a_log_gets_a_line_now_and_then(log: Console) -> None:
    clock = Clock()
    stages = Stages(log, clock)
    stages.show("Loading demo")
    for second in range(12):
        clock.now = float(second)
        stages.show_read(second * 1_000_000_000, 20_000_000_000)
    assert text(log).splitlines() == [
        "Loading demo",
        "5.0 GB of 20.0 GB of weights read",
        "10.0 GB of 20.0 GB of weights read",
    ]


def test_a_log_of_a_quick_start_holds_its_stages_alone(log: Console) -> None:
    with Stages(log, Clock()) as stages:
        stages.show("Loading demo")
        stages.show_read(1, 2)
        stages.show_read(2, 2)
        stages.show("Waiting for the first answer")
    assert text(log).split("\n") == ["Loading demo", "Waiting for the first answer", ""]


def test_a_bar_that_was_never_begun_draws_nothing(screen: Console) -> None:
    with WeightsBar(screen):
        pass
    assert text(screen) == ""
