"""What a grammar is to the sampler: for an output so far, the ids that may come next. Knows no grammar and no text."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from glm_cluster.records import Grammar

if TYPE_CHECKING:  # the plan, which knows of constraints, is made without torch
    from torch import Tensor


class Constraint(Protocol):
    """One sequence's. Called on rank 0, in the engine's thread, before each draw."""

    def allowed(self, output: Sequence[int]) -> "Tensor":
        """A bit for each id, int32 [ceil(V / 32)] on the CPU: bit v % 32 of word v // 32 says whether v may come.

        A function of `output` alone, so that a re-entered request goes on exactly. From one call to the next the output
        of a sequence only grows; the first call may come with any. Where it is complete, the stop tokens are allowed.
        """
        ...


Constrain: TypeAlias = Callable[[Grammar], Constraint]
"""Makes the constraint of a new sequence; raises InvalidRequest where the grammar cannot be followed here."""
