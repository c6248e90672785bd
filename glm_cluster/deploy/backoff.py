"""How long to wait before trying again. Knows numbers."""

import math


def pause_s(num_failures: int, first_s: float, longest_s: float) -> float:
    """The wait after so many failures in a row, of which each doubles it, up to the longest."""
    doublings = min(num_failures, math.ceil(math.log2(longest_s / first_s)))  # a float's range is soon used up
    return min(first_s * 2.0**doublings, longest_s)
