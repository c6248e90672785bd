"""Bars and time lines as SVG elements that stand inside a page. Knows numbers and pixels."""

from collections.abc import Sequence
from html import escape

from glm_cluster.bench.histogram import Histogram
from glm_cluster.bench.timing import Timing

_WIDTH, _HEIGHT, _FOOT = 560, 160, 18
_LINE = 6  # pixels of one request's bar


def bars(histogram: Histogram, title: str) -> str:
    """A histogram; the edges of all bins below it in milliseconds."""
    if not histogram.counts:
        return ""
    most, step = max(histogram.counts), _WIDTH / len(histogram.counts)
    parts = [_bar(index * step, step - 2, count, most) for index, count in enumerate(histogram.counts)]
    low, high = histogram.edges[0] * 1000, histogram.edges[-1] * 1000
    parts.append(_text(0, _HEIGHT + _FOOT - 4, f"{low:.1f} ms"))
    parts.append(_text(_WIDTH, _HEIGHT + _FOOT - 4, f"{high:.1f} ms", anchor="end"))
    return _figure(title, _HEIGHT + _FOOT, parts)


def time_lines(timings: Sequence[Timing], title: str) -> str:
    """One line for each request: waiting for its first token, then answering; failed ones in red."""
    first = min(timing.due_s for timing in timings)
    span = max(timing.end_s for timing in timings) - first or 1.0
    parts = []
    for index, timing in enumerate(timings):
        begin, speak = timing.due_s - first, timing.due_s + timing.ttft_s - first
        colour = "#c33" if timing.error else "#36c"
        parts.append(_span(begin / span, speak / span, index, "#bbb"))
        parts.append(_span(speak / span, (timing.end_s - first) / span, index, colour))
    height = len(timings) * _LINE
    parts.append(_text(_WIDTH, height + _FOOT - 4, f"{span:.2f} s", anchor="end"))
    return _figure(title, height + _FOOT, parts)


def _bar(x: float, width: float, count: int, most: int) -> str:
    height = (_HEIGHT - 20) * count / most
    rect = f'<rect x="{x:.1f}" y="{_HEIGHT - height:.1f}" width="{width:.1f}" height="{height:.1f}" fill="#36c"/>'
    return rect + _text(x + width / 2, _HEIGHT - height - 4, str(count), anchor="middle")


def _span(start: float, end: float, line: int, colour: str) -> str:
    x, width = start * _WIDTH, max(0.0, (end - start) * _WIDTH)
    return f'<rect x="{x:.1f}" y="{line * _LINE}" width="{width:.1f}" height="{_LINE - 1}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(title: str, height: int, parts: Sequence[str]) -> str:
    box = f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img">'
    return f"<figure><figcaption>{escape(title)}</figcaption>{box}{''.join(parts)}</svg></figure>"
