"""What a grammar is to the engine: for an output so far, the ids that may come next. Knows no grammar and no text."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from glm_cluster.errors import GlmError
from glm_cluster.records import Grammar


class Constraint(Protocol):
    """One sequence's. Called on rank 0, in the engine's thread."""

    @property
    def error(self) -> GlmError | None:
        """Why the sequence cannot go on: its grammar is none, or leads no further."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether the sequence need not wait any more: `allowed` may be asked, or there is an `error`."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Until it is ready, but not longer than that."""
        ...

    def leave(self) -> None:
        """Nobody will ask it anything more, whether or not it is ready."""
        ...

    def allowed(self, output: Sequence[int]) -> NDArray[np.int32] | None:
        """A bit for each id, [ceil(V / 32)]: bit v % 32 of word v // 32 says whether v may come; None: see `error`.

        A function of `output` alone, so that a re-entered request goes on exactly. From one call to the next the output
        of a sequence only grows; the first call may come with any. Where it is complete, the stop tokens are allowed.
        """
        ...


Constrain: TypeAlias = Callable[[Grammar], Constraint]
"""Makes the constraint of a new sequence, at once: a grammar that takes long is not ready yet."""
