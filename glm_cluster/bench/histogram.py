"""Values counted into bins that widen by a constant factor, and drawn as bars of characters. Knows no terminal."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

_BLOCKS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class Histogram:
    """`counts[i]` values lie in [edges[i], edges[i + 1]); the last bin holds its upper edge too."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Sequence[float], num_bins: int = 12) -> Self:
        """From the least positive value to the greatest; a value of 0 or less counts as the least."""
        positive = [value for value in values if value > 0]
        if not positive:
            return cls((), ())
        low, high = min(positive), max(positive)
        if low == high:
            return cls((low, high), (len(values),))
        ratio = math.log(high / low) / num_bins
        counts = [0] * num_bins
        for value in values:
            place = int(math.log(max(value, low) / low) / ratio)
            counts[min(place, num_bins - 1)] += 1
        return cls(tuple(low * math.exp(ratio * i) for i in range(num_bins + 1)), tuple(counts))

    def lines(self, width: int = 40) -> Iterator[str]:
        """A line for each bin: from, to, in milliseconds, a bar, the count."""
        most = max(self.counts, default=0)
        for low, high, count in zip(self.edges, self.edges[1:], self.counts, strict=False):
            yield f"{low * 1000:10.1f} - {high * 1000:10.1f} ms |{_bar(count / most, width)} {count}"


def _bar(share: float, width: int) -> str:
    eighths = round(share * width * 8)
    return (_BLOCKS[-1] * (eighths // 8) + _BLOCKS[eighths % 8]).strip().ljust(width)
