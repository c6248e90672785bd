"""How often each id has come in a list of tokens that only grows. Knows no tensor: the arrays are read as one."""

from array import array
from collections.abc import Iterable


class Tally:
    """The distinct ids, in the order they first came, and the count of each: adding a token costs the same for ever.

    Invariant: `ids` has no duplicates, and `counts` adds up to `num_tokens`.
    """

    def __init__(self) -> None:
        self.ids = array("q")
        self.counts = array("q")
        self.num_tokens = 0
        self._index: dict[int, int] = {}

    def add(self, tokens: Iterable[int]) -> None:
        """Count some more."""
        for token in tokens:
            at = self._index.setdefault(token, len(self.ids))
            if at == len(self.ids):
                self.ids.append(token)
                self.counts.append(0)
            self.counts[at] += 1
            self.num_tokens += 1
