"""At the end, one JSON line: how many answers there were, and what a mask costs. Those of record: `bench/results`."""

import json
import os
from collections import Counter
from statistics import quantiles
from typing import Any

import pytest

from glm_cluster.bench.host import about

LOAD_BEFORE = os.getloadavg()[0]
FIGURES = "figures"  # the property of a report; JSON: counts by name, and masks by their microseconds


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Over all tests, whichever process ran them."""
    counts: Counter[str] = Counter()
    masks: Counter[int] = Counter()
    reports = [report for report in terminalreporter.stats.get("passed", []) if report.when == "call"]
    for report in reports:
        for name, value in report.user_properties:
            if name == FIGURES:
                figures = json.loads(value)
                masks.update({int(us): count for us, count in figures.pop("masks", {}).items()})
                counts.update(figures)
    if counts:
        line: dict[str, Any] = {
            **about(load_before=LOAD_BEFORE),
            "command": "make test-structured",
            "passed": len(reports),
            **counts,
        }
        if masks:
            line["mask_ms"] = _spread(masks)
        terminalreporter.write_line(json.dumps(line))


def _spread(masks: "Counter[int]") -> dict[str, float]:
    cuts = quantiles(masks.elements(), n=100)
    mean = sum(us * count for us, count in masks.items()) / masks.total()
    named = {"mean": mean, "median": cuts[49], "p99": cuts[98], "worst": max(masks)}
    return {name: round(us / 1000, 3) for name, us in named.items()}


@pytest.fixture
def record_figures(record_property: Any) -> Any:
    """Add these to the line at the end."""
    return lambda figures: record_property(FIGURES, json.dumps(figures))
