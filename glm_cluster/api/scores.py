"""From the rows of an engine to numbers a client may see: scores of labels, and vectors. Arithmetic alone.

Probabilities are computed in float64 from the float32 logits. Nothing that is no finite number leaves here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from glm_cluster.errors import InternalError
from glm_cluster.records import Encoded, ModelInfo

Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]
Activation: TypeAlias = Literal["softmax", "sigmoid", "none"]
"""softmax: one label holds; sigmoid: each may hold or not; none: the model estimates values, not probabilities."""


def activation_of(info: ModelInfo) -> Activation:
    """What the classifier was trained under. Without a problem type, as HF's loss guesses it."""
    match info.problem_type:
        case "multi_label_classification":
            return "sigmoid"
        case "regression":
            return "none"
        case None if info.task == "classify" and len(info.labels) == 1:
            return "none"
    return "softmax"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one input or token. `scores` go with the model's labels, in order."""

    label: str | None  # the best; None where the model estimates values
    score: float | None  # the best label's, or the one value; None where there are several values
    scores: Sequence[float]
    probable: tuple[str, ...] | None  # labels of probability 0.5 or more, where several may hold


class Scores:
    """The verdicts on the rows of some logits [N, L], made one at a time as they are asked for."""

    def __init__(self, logits: Floats, labels: Sequence[str], activation: Activation, *, raw: bool) -> None:
        exact = logits.astype(np.float64)
        probabilities = activate(exact, activation)
        self._labels = labels
        self._activation = activation
        self._shown = exact if raw else probabilities
        self._probable = probabilities >= 0.5
        self._best = logits.argmax(axis=1)

    def __len__(self) -> int:
        return len(self._shown)

    def __getitem__(self, row: int) -> Verdict:
        scores: list[float] = self._shown[row].tolist()
        if self._activation == "none":
            return Verdict(None, scores[0] if len(scores) == 1 else None, scores, None)
        best = int(self._best[row])
        probable = None
        if self._activation == "sigmoid":
            probable = tuple(label for label, holds in zip(self._labels, self._probable[row], strict=True) if holds)
        return Verdict(self._labels[best], scores[best], scores, probable)


def activate(logits: Doubles, activation: Activation) -> Doubles:
    """Probabilities [N, L] of logits [N, L], without overflow however large those are."""
    if activation == "none":
        return logits
    if activation == "sigmoid":
        small = np.exp(-np.abs(logits))
        return np.where(logits >= 0, 1.0, small) / (1.0 + small)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Doubles = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def unit(vector: Floats) -> Floats:
    """The vector of length 1 in the same direction. One of length 0 has none and stays."""
    exact = vector.astype(np.float64)
    length = np.sqrt(np.square(exact).sum())
    return vector if length == 0 else (exact / length).astype(np.float32)


def rows_of(encoded: Encoded, *, num_rows: int, width: int | None = None) -> Floats:
    """The numbers of an answer, which must be as many as asked for and finite."""
    given = (encoded.num_rows, encoded.width, len(encoded.values))
    wanted = (num_rows, width or encoded.width, 4 * encoded.num_rows * encoded.width)
    if given != wanted:
        raise InternalError(f"an engine answered {given} (rows, width, bytes) where {wanted} is due; please report it")
    rows = np.frombuffer(encoded.values, dtype="<f4").astype(np.float32, copy=False).reshape(num_rows, encoded.width)
    if not np.isfinite(rows).all():
        raise InternalError("the model computed numbers that are not finite; its checkpoint or dtype may not be right")
    return rows
