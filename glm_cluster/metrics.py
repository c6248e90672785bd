"""Every number the cluster reports, by name. Knows no exporter: whoever serves hands the front a `Meters`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_BATCH = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What an exporter must know to declare one metric. `boundaries` are a histogram's bucket edges."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    tag_keys: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()


class Meters(Protocol):
    """Where numbers go. The cluster's implementation exports them; `NoMeters` drops them."""

    def count(self, metric: Metric, value: float, tags: Mapping[str, str] | None = None) -> None: ...

    def observe(self, metric: Metric, value: float, tags: Mapping[str, str] | None = None) -> None: ...

    def gauge(self, metric: Metric, value: float, tags: Mapping[str, str] | None = None) -> None: ...


class NoMeters:
    """Drops every number."""

    def count(self, metric: Metric, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Drop it."""

    def observe(self, metric: Metric, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Drop it."""

    def gauge(self, metric: Metric, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Drop it."""


REQUESTS = Metric(
    name="glm_requests_total",
    kind="counter",
    description="Requests ended. status: ok, cancelled, or the error's code.",
    tag_keys=("wire", "route", "status"),
)
REQUEST_S = Metric(
    name="glm_request_seconds",
    kind="histogram",
    description="From a request's arrival to its answer's last byte out; over HTTP its body counts in.",
    tag_keys=("wire", "route"),
    boundaries=_LATENCY_S,
)
FIRST_TOKEN_S = Metric(
    name="glm_time_to_first_token_seconds",
    kind="histogram",
    description="From a tokenised request to its first token.",
    boundaries=_LATENCY_S,
)
INTER_TOKEN_S = Metric(
    name="glm_inter_token_seconds",
    kind="histogram",
    description="Between two deliveries of tokens of one request.",
    boundaries=_LATENCY_S,
)
TOKENS = Metric(
    name="glm_tokens_total",
    kind="counter",
    description="Tokens served. kind: prompt, cached (the part of prompt not computed again), output.",
    tag_keys=("kind",),
)
ENCODE_BATCH = Metric(
    name="glm_encode_batch_size",
    kind="histogram",
    description="Prompts tokenised in one call.",
    boundaries=_BATCH,
)
ENGINE_SUBMISSION_BATCH = Metric(
    name="glm_engine_submission_batch_size",
    kind="histogram",
    description="Requests handed to an engine in one message.",
    boundaries=_BATCH,
)
MIGRATIONS = Metric(
    name="glm_migrations_total",
    kind="counter",
    description="Requests re-entered on another engine after theirs died.",
)
DRAFT_TOKENS = Metric(
    name="glm_draft_tokens_total",
    kind="counter",
    description="Tokens guessed ahead. kind: drafted, accepted (the part of drafted that was right).",
    tag_keys=("kind",),
)
WAITING = Metric(name="glm_waiting_requests", kind="gauge", description="Requests waiting for room in an engine.")
RUNNING = Metric(name="glm_running_requests", kind="gauge", description="Requests an engine is working on.")
FREE_BLOCKS = Metric(name="glm_free_kv_blocks", kind="gauge", description="KV blocks that hold no running request.")
BLOCKS = Metric(name="glm_kv_blocks", kind="gauge", description="KV blocks of an engine.")
USAGE_LOST = Metric(
    name="glm_usage_records_lost_total",
    kind="counter",
    description="Usage records that could not be written.",
)
USAGE_UNKEPT = Metric(
    name="glm_usage_records_unkept_total",
    kind="counter",
    description="Requests whose usage record is lost if their front process is killed.",
)
