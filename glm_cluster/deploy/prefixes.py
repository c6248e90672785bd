"""Which replicas were sent which beginnings of prompts. Knows hashes and names, nothing of loads."""

from collections import OrderedDict
from collections.abc import Sequence

BLOCK = 128  # tokens hashed together
_MAX_BLOCKS = 16  # of a prompt; what follows does not change the choice
_MAX_HASHES = 1 << 18  # remembered; each takes about 200 bytes
_HOLDERS = 4  # replicas remembered for a prefix


def prefix_hashes(prompt: tuple[int, ...]) -> list[int]:
    """A hash for every whole block of the prompt, each covering everything before it; the same in every process."""
    hashes = []
    chained = 0
    for start in range(0, min(len(prompt) // BLOCK, _MAX_BLOCKS) * BLOCK, BLOCK):
        chained = hash((chained, prompt[start : start + BLOCK]))
        hashes.append(chained)
    return hashes


class Prefixes:
    """The latest holders of each prefix, the least recently sent prefixes forgotten first, and of these the longest.

    So whatever is known of a prompt is a beginning of it.
    """

    def __init__(self, capacity: int = _MAX_HASHES) -> None:
        self._capacity = capacity
        self._holders: OrderedDict[int, tuple[str, ...]] = OrderedDict()

    def known(self, hashes: Sequence[int]) -> int:
        """How many blocks of the prompt were sent somewhere."""
        low, high = 0, len(hashes)
        while low < high:
            middle = (low + high) // 2
            if hashes[middle] in self._holders:
                low = middle + 1
            else:
                high = middle
        return low

    def matched(self, hashes: Sequence[int], known: int) -> dict[str, int]:
        """Tokens of the prompt that replicas have seen, for a few of those that saw most."""
        matched: dict[str, int] = {}
        before: tuple[str, ...] = ()
        for index in range(known - 1, -1, -1):
            holders = self._holders[hashes[index]]
            if holders is before:
                continue
            before = holders
            for replica in holders:
                matched.setdefault(replica, (index + 1) * BLOCK)
            if len(matched) >= _HOLDERS:
                break
        return matched

    def note(self, hashes: Sequence[int], replica: str) -> None:
        """Remember that `replica` gets this prompt."""
        before: tuple[str, ...] = ()
        after: tuple[str, ...] = (replica,)
        for block in reversed(hashes):
            holders = self._holders.get(block, ())
            if holders is not before:  # blocks that go together have the same tuple
                before = holders
                after = (replica, *[other for other in holders if other != replica])[:_HOLDERS]
            self._holders[block] = after
            self._holders.move_to_end(block)
        while len(self._holders) > self._capacity:
            self._holders.popitem(last=False)

    def __len__(self) -> int:
        return len(self._holders)
