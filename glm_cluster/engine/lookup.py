"""What may come next in a sequence: what followed the last occurrence of its latest tokens in itself.

Knows token ids. Refuses to know the model: a draft may be wrong, it costs rows of a step and never a token.
"""

from collections.abc import Sequence

# The longest suffix that occurred before is the best reason. In answers of the demo model a fourth token added nothing,
# and guesses after a single one, a comma say, were wrong so often that they kept the good ones away.
SUFFIXES = (3, 2)
_WINDOW = 2**15  # tokens back that are looked at: more would hold a step up while they are indexed
_LONGEST_PAUSE = 32  # steps: where every guess is wrong, guessing costs one step in a hundred or less


class PromptLookup:
    """Drafts for one sequence, the fewer the more often they were wrong.

    The suffixes of its tokens are indexed as they come, so that a draft costs the same however long the sequence is.
    """

    def __init__(self) -> None:
        self._followed_at: dict[tuple[int, ...], int] = {}  # where the token after a suffix's last occurrence stands
        self._num_indexed = 0
        self._pause = 0  # steps without a draft after the next wrong one
        self._rest = 0  # of them, those still to come

    @property
    def is_trusted(self) -> bool:
        """Whether the last draft was right, or there was none yet."""
        return self._pause == 0

    def draft(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """At most `most` tokens that may follow `tokens`, which are those of the last call and some more.

        What repeats itself up to its end is drafted to go on so.
        """
        if self._rest:
            self._rest -= 1
            return ()
        self._index(tokens)
        end = len(tokens)
        for length in SUFFIXES:
            if (start := self._followed_at.get(tuple(tokens[end - length : end]) if length <= end else ())) is not None:
                return tuple(tokens[start + i % (end - start)] for i in range(most))
        return ()

    def judge(self, num_accepted: int) -> None:
        """Learn how many tokens of a draft were right. After a wrong one there is a pause, twice as long each time."""
        if num_accepted:
            self._pause = self._rest = 0
        else:
            self._pause = self._rest = min(2 * self._pause + 1, _LONGEST_PAUSE)

    def _index(self, tokens: Sequence[int]) -> None:
        """Note every suffix that some token follows, as far back as is worth it."""
        for at in range(max(self._num_indexed, len(tokens) - _WINDOW), len(tokens)):
            for length in SUFFIXES:
                if length <= at:
                    self._followed_at[tuple(tokens[at - length : at])] = at
        self._num_indexed = len(tokens)
