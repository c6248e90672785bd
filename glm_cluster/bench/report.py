"""A run of `bench serve` as one file: an HTML page without scripts or other files, or a PNG where matplotlib is.

Knows summaries and timings. Measures nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from glm_cluster.bench.against import Comparison
from glm_cluster.bench.histogram import Histogram
from glm_cluster.bench.summary import Summary
from glm_cluster.bench.svg import bars, time_lines
from glm_cluster.bench.timing import Timing

_STYLE = (
    "body{font:14px sans-serif;max-width:60em;margin:2em auto}svg text{font-size:11px}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One server's rounds."""

    name: str
    rounds: tuple[Summary, ...]
    timings: tuple[tuple[Timing, ...], ...]  # of each round

    @property
    def whole(self) -> list[Timing]:
        """The answers of all rounds that came whole."""
        return [timing for part in self.timings for timing in part if timing.error is None]


def write_report(path: Path, about: Mapping[str, Any], sides: Sequence[Side], comparison: Comparison | None) -> Path:
    """Write the file and return where it is: HTML beside the name asked for where a PNG cannot be drawn."""
    if path.suffix == ".png" and find_spec("matplotlib") is not None:
        from glm_cluster.bench.png import write_png

        write_png(path, sides)
        return path
    path = path.with_suffix(".html")
    path.write_text(page(about, sides, comparison), encoding="utf-8")
    return path


def page(about: Mapping[str, Any], sides: Sequence[Side], comparison: Comparison | None) -> str:
    """The page, complete in itself."""
    parts = [f"<h1>glm-cluster bench serve</h1>{_facts(about)}"]
    if comparison is not None:
        parts.append(f"<h2>ours / peer</h2>{_comparison(comparison)}")
    parts += map(_side, sides)
    title = "<!doctype html><html lang=en><meta charset=utf-8><title>glm-cluster bench serve</title>"
    return f"{title}<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"


def _side(side: Side) -> str:
    gaps = [gap for timing in side.whole for gap in timing.gaps_s]
    return "".join(
        (
            f"<h2>{escape(side.name)}</h2>",
            *(_summary(number, summary) for number, summary in enumerate(side.rounds, 1)),
            bars(Histogram.of([timing.ttft_s for timing in side.whole]), "time to the first token"),
            bars(Histogram.of(gaps), "time between arrivals"),
            bars(Histogram.of([timing.e2e_s for timing in side.whole]), "time to the end"),
            time_lines(side.timings[-1], "requests of the last round"),
        )
    )


def _facts(about: Mapping[str, Any]) -> str:
    return "<p>" + "<br>".join(f"{escape(key)}: {escape(str(value))}" for key, value in about.items()) + "</p>"


def _summary(number: int, summary: Summary) -> str:
    head = ["ms", "p50", "p90", "p95", "p99", "max"]
    rows = [
        [name, *(f"{value * 1000:.1f}" for value in (found.p50, found.p90, found.p95, found.p99, found.max))]
        for name, found in (("TTFT", summary.ttft_s), ("ITL", summary.itl_s), ("E2E", summary.e2e_s))
    ]
    said = (
        f"Round {number}: {summary.num_requests} requests, {summary.num_failed} failed, "
        f"{summary.output_tokens_per_s:.1f} tokens/s, longest gap {summary.longest_gap_s * 1000:.1f} ms, "
        f"good {summary.good_share:.1%}"
    )
    failed = "".join(f"<p>{count} × {escape(error)}</p>" for error, count in summary.errors.items())
    return f"<p>{said}</p>{failed}{_table([head, *rows])}"


def _comparison(comparison: Comparison) -> str:
    rows = [
        [name, f"{mine:.4g}", f"{comparison.peer[name]:.4g}", str(comparison.ratio[name] or "-")]
        for name, mine in comparison.ours.items()
    ]
    return _table([["median of rounds", "ours", "peer", "ours/peer"], *rows])


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"
