"""What a group shows of its engine."""

from glm_cluster.deploy.group import report_load
from glm_cluster.metrics import Metric, NoMeters
from glm_cluster.records import ReplicaLoad


class Counters(NoMeters):
    """Sums what is counted, by kind."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], float] = {}

    def count(self, metric: Metric, value: float, tags: dict[str, str] | None = None) -> None:
        key = (metric.name, (tags or {})["kind"])
        self.sums[key] = self.sums.get(key, 0) + value


def load(drafted: int, accepted: int) -> ReplicaLoad:
    return ReplicaLoad(
        num_waiting=0, num_running=1, num_free_blocks=2, num_blocks=3, num_drafted=drafted, num_accepted=accepted
    )


def test_drafts_are_counted_once_whatever_reports_were_missed_and_from_nothing_after_a_restart() -> None:
    meters, name = Counters(), "glm_draft_tokens_total"
    life, next_life = [load(0, 0), load(7, 3), load(7, 3), load(21, 8)], [load(4, 4)]
    for loads in (life, next_life):
        before = None
        for now in loads:
            report_load(meters, before, now)
            before = now
    assert meters.sums == {(name, "drafted"): 25, (name, "accepted"): 12}
