"""When the parts of one answer came. Knows clocks; nothing of wires or loads."""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One request as its client saw it; seconds on one clock.

    `due_s` is when it was to be sent: in an open loop a late client does not make its server look better. An arrival
    is a message that brought tokens; it may bring several.
    """

    due_s: float
    arrivals_s: tuple[float, ...]
    end_s: float
    num_tokens: int  # received
    num_prompt_tokens: int
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        """To the first token; to the end where an answer had none to show."""
        return (self.arrivals_s[0] if self.arrivals_s else self.end_s) - self.due_s

    @property
    def e2e_s(self) -> float:
        """To the end of the answer."""
        return self.end_s - self.due_s

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Between one arrival and the next."""
        return tuple(after - before for before, after in pairwise(self.arrivals_s))

    @property
    def tpot_s(self) -> float:
        """Mean time of a token after the first; 0 where there is none."""
        if self.num_tokens < 2 or not self.arrivals_s:
            return 0.0
        return (self.arrivals_s[-1] - self.arrivals_s[0]) / (self.num_tokens - 1)
