"""Two servers measured in one run, by turns. Knows rounds, medians and ratios; nothing of what a round does.

A shared machine changes by the hour: only what was measured in one window may be compared.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median

from glm_cluster.bench.summary import Summary

FIGURES: dict[str, Callable[[Summary], float]] = {
    "output_tokens_per_s": lambda s: s.output_tokens_per_s,
    "ttft_p50_s": lambda s: s.ttft_s.p50,
    "ttft_p95_s": lambda s: s.ttft_s.p95,
    "itl_p50_s": lambda s: s.itl_s.p50,
    "itl_p95_s": lambda s: s.itl_s.p95,
    "e2e_p50_s": lambda s: s.e2e_s.p50,
    "longest_gap_s": lambda s: s.longest_gap_s,
    "goodput_per_s": lambda s: s.goodput_per_s,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Medians over the rounds, and ours divided by the peer's; None where the peer's is 0."""

    ours: dict[str, float]
    peer: dict[str, float]
    ratio: dict[str, float | None]


def turns(num_rounds: int) -> list[str]:
    """Who is measured when: each round both, the one that begins changing from round to round."""
    pairs = (("ours", "peer") if number % 2 == 0 else ("peer", "ours") for number in range(num_rounds))
    return [name for pair in pairs for name in pair]


async def alternate(
    num_rounds: int, measure: Callable[[str, int], Awaitable[Summary]]
) -> tuple[list[Summary], list[Summary]]:
    """Measure both sides by turns; `measure` is told the side and the round, so that both get a round's prompts."""
    found: dict[str, list[Summary]] = {"ours": [], "peer": []}
    for name in turns(num_rounds):
        found[name].append(await measure(name, len(found[name])))
    return found["ours"], found["peer"]


def medians(rounds: Sequence[Summary]) -> dict[str, float]:
    """Each figure's median over the rounds."""
    return {name: round(median(map(figure, rounds)), 6) for name, figure in FIGURES.items()}


def compare(ours: Sequence[Summary], peer: Sequence[Summary]) -> Comparison:
    """Medians of both sides and their ratios."""
    mine, theirs = medians(ours), medians(peer)
    ratio = {name: round(mine[name] / theirs[name], 3) if theirs[name] else None for name in FIGURES}
    return Comparison(ours=mine, peer=theirs, ratio=ratio)
