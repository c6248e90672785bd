"""What a verification found, and how a person reads it. Knows no model and no oracle."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["equal", "within", "different", "skipped"]
"""equal: to the bit or to the id; within: inside the stated bound; skipped: there was nothing to compare with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison. `measured` and `bound` are numbers of the same kind, where the comparison has any."""

    name: str
    detail: str
    verdict: Verdict
    bound: float | None = None
    measured: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All comparisons of one checkpoint, in the order they were made."""

    model: str
    against: str  # "transformers 5.23.0", or our own plain forward
    is_self_check: bool
    facts: tuple[str, ...]  # versions, dtype, what the oracle could not do by itself
    checks: tuple[Check, ...]

    @property
    def first_difference(self) -> Check | None:
        """The first comparison that failed; None where all held."""
        return next((check for check in self.checks if check.verdict == "different"), None)


def render(report: Report) -> str:
    """Return the report as an aligned table with a verdict as its last line."""
    head = ("check", "verdict", "measured", "bound", "detail")
    rows = [(c.name, _shown(c), _number(c.measured), _number(c.bound), c.detail) for c in report.checks]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = (*("-" * width for width in widths[:-1]), "")
    kind = "self-check against" if report.is_self_check else "compared with"
    lines = [f"{report.model}, {kind} {report.against}", *report.facts, ""]
    lines += [_line(row, widths) for row in (head, rule, *rows)]
    return "\n".join([*lines, "", conclusion(report)])


def conclusion(report: Report) -> str:
    """Return what the whole comes to, in a line."""
    if (first := report.first_difference) is not None:
        return f"DIFFERENT: {first.name}: {first.detail}"
    held = "self-check passed against" if report.is_self_check else "verified: equal to"
    skipped = [check.name for check in report.checks if check.verdict == "skipped"]
    return f"{held} {report.against}" + (f" (not compared: {', '.join(skipped)})" if skipped else "")


def _shown(check: Check) -> str:
    return "DIFFERENT" if check.verdict == "different" else check.verdict


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}" if value else "0"


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
