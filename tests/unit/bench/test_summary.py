"""Arithmetic of timings, worked out by hand."""

import pytest

from glm_cluster.bench.histogram import Histogram
from glm_cluster.bench.summary import Percentiles, Slo, percentile, summarise
from glm_cluster.bench.timing import Timing


def timing(due=0.0, arrivals=(1.0, 1.5, 3.0), end=3.0, tokens=3, error=None):
    return Timing(
        due_s=due, arrivals_s=tuple(arrivals), end_s=end, num_tokens=tokens, num_prompt_tokens=10, error=error
    )


def test_parts_of_an_answer() -> None:
    one = timing(due=0.5)
    assert (one.ttft_s, one.e2e_s, one.gaps_s, one.tpot_s) == (0.5, 2.5, (0.5, 1.5), 1.0)


def test_several_tokens_in_one_arrival_share_its_time() -> None:
    assert timing(arrivals=(1.0, 3.0), tokens=5).tpot_s == 0.5


def test_an_answer_without_tokens_is_late_until_its_end() -> None:
    none = timing(arrivals=(), end=2.0, tokens=0)
    assert (none.ttft_s, none.gaps_s, none.tpot_s) == (2.0, (), 0.0)


@pytest.mark.parametrize(("percent", "expected"), [(50, 5), (90, 9), (95, 10), (99, 10), (1, 1)])
def test_percentile_is_a_value_that_happened(percent: int, expected: int) -> None:
    assert percentile(list(range(1, 11)), percent) == expected


def test_percentiles_sort_first_and_of_nothing_are_zero() -> None:
    assert Percentiles.of([3.0, 1.0, 2.0]) == Percentiles(p50=2.0, p90=3.0, p95=3.0, p99=3.0, max=3.0)
    assert Percentiles.of([]).max == 0.0


def test_summary_by_hand() -> None:
    timings = [timing(), timing(due=1.0, arrivals=(2.0, 5.0), end=5.0, tokens=2), timing(end=4.0, error="no", tokens=1)]
    found = summarise(timings, Slo(ttft_s=1.0, tpot_s=1.0))
    assert (found.num_requests, found.num_failed, found.errors) == (3, 1, {"no": 1})
    assert found.duration_s == 5.0
    assert found.output_tokens_per_s == 6 / 5
    assert found.requests_per_s == 2 / 5
    assert found.num_prompt_tokens == 30
    assert found.longest_gap_s == 3.0
    assert (found.itl_s.p50, found.itl_s.max) == (1.5, 3.0)
    assert (found.e2e_s.p50, found.e2e_s.max) == (3.0, 4.0)
    assert (found.good_share, found.goodput_per_s) == (1 / 3, 1 / 5)  # the second is slow, the third failed
    assert found.row()["ttft_s"]["p50"] == 1.0


@pytest.mark.parametrize(
    ("slo", "good"),
    [(Slo(), True), (Slo(ttft_s=1.0), True), (Slo(ttft_s=0.9), False), (Slo(tpot_s=0.9), False), (Slo(e2e_s=2), False)],
)
def test_each_limit_counts(slo: Slo, good: bool) -> None:
    assert slo.holds(timing()) is good


def test_bins_widen_by_a_constant_factor() -> None:
    found = Histogram.of([1.0, 1.5, 2.0, 3.9, 4.0], num_bins=2)
    assert found.edges == pytest.approx((1.0, 2.0, 4.0))
    assert sum(found.counts) == 5
    assert found.counts == (2, 3)


def test_lines_show_counts_and_milliseconds() -> None:
    first, second = Histogram((0.001, 0.01, 0.1), (4, 1)).lines(width=8)
    assert first.split("|")[1] == "████████ 4"
    assert second.split("|")[1] == "██       1"
    assert "10.0 -      100.0 ms" in second


def test_one_value_and_none() -> None:
    assert Histogram.of([2.0, 2.0]).counts == (2,)
    assert list(Histogram.of([]).lines()) == []
