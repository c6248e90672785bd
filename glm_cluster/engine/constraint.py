"""What a grammar is to the engine: which ids may follow an output, and which must. Knows no grammar and no text."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from glm_cluster.errors import GlmError
from glm_cluster.records import Grammar


class Constraint(Protocol):
    """One sequence's, which it is given as it comes. Called on rank 0, in the engine's thread.

    What it says is a function of the tokens that it has been given, in however many parts, so that a request that is
    taken up elsewhere goes on exactly.
    """

    @property
    def error(self) -> GlmError | None:
        """Why the sequence cannot go on: its grammar is none, or leads no further."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether the sequence need not wait any more: it can be given tokens and asked, or there is an `error`."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Until it is ready, but not longer than that."""
        ...

    def leave(self) -> None:
        """Nobody will ask it anything more, whether or not it is ready."""
        ...

    @property
    def num_taken(self) -> int:
        """How many tokens of output it has been given."""
        ...

    def take(self, tokens: Sequence[int]) -> None:
        """The output goes on with these."""
        ...

    def allowed(self) -> NDArray[np.int32] | None:
        """A bit for each id, [ceil(V / 32)]: bit v % 32 of word v // 32 says whether v may come; None: see `error`.

        Where the output is complete, the stop tokens are allowed.
        """
        ...

    def forced(self) -> Sequence[int]:
        """The next tokens as far as there is no choice about them; a guess, which `allowed` decides upon."""
        ...


Constrain: TypeAlias = Callable[[Grammar], Constraint]
"""Makes the constraint of a new sequence, at once: a grammar that takes long is not ready yet."""
