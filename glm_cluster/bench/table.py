"""Results as lines for a terminal. Knows summaries and passes; prints nothing itself."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glm_cluster.bench.against import Comparison
from glm_cluster.bench.histogram import Histogram
from glm_cluster.bench.summary import Percentiles, Summary
from glm_cluster.bench.timing import Timing


def summary_lines(name: str, summary: Summary) -> Iterator[str]:
    """One round."""
    yield (
        f"{name}: {summary.num_requests} requests, {summary.num_failed} failed, {summary.duration_s:.2f} s, "
        f"{summary.num_prompt_tokens} prompt and {summary.num_output_tokens} output tokens"
    )
    yield f"  {summary.output_tokens_per_s:.1f} tokens/s out, {summary.requests_per_s:.2f} answers/s"
    yield f"  good answers {summary.good_share:.1%}, goodput {summary.goodput_per_s:.2f}/s"
    yield f"  {'ms':6}{'p50':>10}{'p90':>10}{'p95':>10}{'p99':>10}{'max':>10}"
    for label, found in (("TTFT", summary.ttft_s), ("ITL", summary.itl_s), ("E2E", summary.e2e_s)):
        yield f"  {label:6}{_milliseconds(found)}"
    yield f"  longest gap {summary.longest_gap_s * 1000:.1f} ms"
    for error, count in summary.errors.items():
        yield f"  {count} x {error}"


def histogram_lines(name: str, timings: Sequence[Timing]) -> Iterator[str]:
    """First tokens and gaps of the answers that came whole."""
    whole = [timing for timing in timings if timing.error is None]
    series = {
        "first token": [timing.ttft_s for timing in whole],
        "between arrivals": [gap for timing in whole for gap in timing.gaps_s],
    }
    for label, values in series.items():
        if values:
            yield f"{name}, {label}:"
            yield from Histogram.of(values).lines()


def comparison_lines(comparison: Comparison) -> Iterator[str]:
    """Both sides and what ours is of the peer's."""
    yield f"{'median of rounds':22}{'ours':>12}{'peer':>12}{'ours/peer':>12}"
    for name, mine in comparison.ours.items():
        ratio = comparison.ratio[name]
        shown = "-" if ratio is None else f"{ratio:.3f}"
        yield f"{name:22}{mine:12.4g}{comparison.peer[name]:12.4g}{shown:>12}"


def aligned(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Rows with the same keys, the keys above them, in columns."""
    cells = [[str(key) for key in rows[0]], *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))


def _milliseconds(found: Percentiles) -> str:
    values = (found.p50, found.p90, found.p95, found.p99, found.max)
    return "".join(f"{value * 1000:10.1f}" for value in values)
