"""Numbers to Ray's exporter, each declared on first use in the process that reports it."""

from collections.abc import Mapping
from typing import Any

from ray.serve import metrics as exported

from glm_cluster.metrics import Metric


class RayMeters:
    """`Meters` over `ray.serve.metrics`, which adds deployment, replica and application to every series."""

    def __init__(self) -> None:
        self._declared: dict[str, Any] = {}

    def count(self, metric: Metric, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Add to a counter."""
        if value > 0:
            self._get(metric).inc(value, tags=dict(tags or {}))

    def observe(self, metric: Metric, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Put a value into a histogram."""
        self._get(metric).observe(value, tags=dict(tags or {}))

    def gauge(self, metric: Metric, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Set a gauge."""
        self._get(metric).set(value, tags=dict(tags or {}))

    def _get(self, metric: Metric) -> Any:
        if metric.name not in self._declared:
            self._declared[metric.name] = _declare(metric)
        return self._declared[metric.name]


def _declare(metric: Metric) -> Any:
    match metric.kind:
        case "counter":
            return exported.Counter(metric.name, metric.description, metric.tag_keys)
        case "gauge":
            return exported.Gauge(metric.name, metric.description, metric.tag_keys)
        case "histogram":
            return exported.Histogram(metric.name, metric.description, list(metric.boundaries), metric.tag_keys)
