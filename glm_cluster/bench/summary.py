"""What many timings come to: percentiles, rates, the longest gap and goodput. Pure arithmetic."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from glm_cluster.bench.timing import Timing

PERCENTS = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What an answer must keep to be a good one. `None` asks for nothing."""

    ttft_s: float | None = None
    tpot_s: float | None = None  # mean time of a token after the first
    e2e_s: float | None = None

    def holds(self, timing: Timing) -> bool:
        """Whether the answer came whole and in time."""
        pairs = ((timing.ttft_s, self.ttft_s), (timing.tpot_s, self.tpot_s), (timing.e2e_s, self.e2e_s))
        return timing.error is None and all(limit is None or value <= limit for value, limit in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Of values that happened: the smallest one that so many percent do not exceed. All 0 where there is none."""

    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Nearest rank, without interpolation."""
        ordered = sorted(values)
        found = {f"p{percent}": percentile(ordered, percent) for percent in PERCENTS}
        return cls(**found, max=ordered[-1] if ordered else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One round of one server. Latencies are of the answers that came whole, rates of all that was received."""

    num_requests: int
    num_failed: int
    errors: dict[str, int]  # what was said, how often
    duration_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    output_tokens_per_s: float
    requests_per_s: float
    ttft_s: Percentiles
    itl_s: Percentiles
    e2e_s: Percentiles
    longest_gap_s: float
    good_share: float
    goodput_per_s: float  # good answers

    def row(self) -> dict[str, Any]:
        """As JSON values, rounded to microseconds."""
        rounded: dict[str, Any] = _rounded(asdict(self))
        return rounded


def summarise(timings: Sequence[Timing], slo: Slo) -> Summary:
    """Sum a round up; from the first due time to the last end."""
    whole = [timing for timing in timings if timing.error is None]
    duration = max(timing.end_s for timing in timings) - min(timing.due_s for timing in timings)
    gaps = [gap for timing in whole for gap in timing.gaps_s]
    num_tokens = sum(timing.num_tokens for timing in timings)
    num_good = sum(map(slo.holds, timings))
    return Summary(
        num_requests=len(timings),
        num_failed=len(timings) - len(whole),
        errors=dict(Counter(timing.error for timing in timings if timing.error is not None)),
        duration_s=duration,
        num_prompt_tokens=sum(timing.num_prompt_tokens for timing in timings),
        num_output_tokens=num_tokens,
        output_tokens_per_s=num_tokens / duration,
        requests_per_s=len(whole) / duration,
        ttft_s=Percentiles.of(timing.ttft_s for timing in whole),
        itl_s=Percentiles.of(gaps),
        e2e_s=Percentiles.of(timing.e2e_s for timing in whole),
        longest_gap_s=max(gaps, default=0.0),
        good_share=num_good / len(timings),
        goodput_per_s=num_good / duration,
    )


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The smallest of ascending values that `percent` of them do not exceed; 0 of none."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else 0.0


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return round(value, 6) if isinstance(value, float) else value
