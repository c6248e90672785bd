"""The histograms of a run as a picture. Knows matplotlib, which the extra `report` brings."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from glm_cluster.bench.report import Side


def write_png(path: Path, sides: "Sequence[Side]") -> None:
    """A row for each server: first tokens, gaps, whole answers, in milliseconds."""
    figure = Figure(figsize=(12, 3 * len(sides)), layout="constrained")
    for axes, side in zip(figure.subplots(len(sides), 3, squeeze=False), sides, strict=True):
        series = {
            "TTFT": [timing.ttft_s for timing in side.whole],
            "ITL": [gap for timing in side.whole for gap in timing.gaps_s],
            "E2E": [timing.e2e_s for timing in side.whole],
        }
        for axis, (name, values) in zip(axes, series.items(), strict=True):
            axis.hist([value * 1000 for value in values], bins=24)
            axis.set_title(f"{side.name}: {name}, ms")
    figure.savefig(path, dpi=120)
