"""The pool of KV blocks: reference counts, sharing by prefix hash, least recently used first out.

Knows block numbers and hashes; has never seen a tensor or a request.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

ROOT_HASH = b""  # what the first block of a prompt without a salt has for a parent


class OutOfBlocks(Exception):
    """The pool cannot give that many blocks now. Caught by the scheduler, which preempts or waits."""


def root_hash(salt: str | None) -> bytes:
    """Name the parent of a prompt's first block: prompts of different salts have no block in common."""
    if salt is None:
        return ROOT_HASH
    return hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=16, person=b"cache_salt").digest()


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Name a full block by everything up to its end. Cryptographic, so that nobody can forge another's prefix."""
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """Blocks 1..num_blocks-1 (block 0 is the model's scratch block).

    Invariant: a block is free exactly when its reference count is 0; free blocks stand in `_free` from least to most
    recently used, before them those without a hash; `_by_hash` and `_hash_of` are inverse. A free block keeps its hash,
    so its content can be shared again until it is handed out.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks - 1
        self._refs = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        self._by_hash: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks nobody holds, cached content or not."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Return `count` blocks with one reference each, or raise OutOfBlocks having taken none."""
        if count > len(self._free):
            raise OutOfBlocks
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._refs[block] = 1
            if (old := self._hash_of.pop(block, None)) is not None:
                del self._by_hash[old]
        return blocks

    def share(self, hashes: Iterable[bytes]) -> list[int]:
        """Take a reference on each block of the longest known prefix of `hashes`."""
        blocks = []
        for name in hashes:
            if (block := self._by_hash.get(name)) is None:
                break
            self._refs[block] += 1
            self._free.pop(block, None)
            blocks.append(block)
        return blocks

    def publish(self, block: int, name: bytes) -> None:
        """Let a block that is full, or is after the next step, be found by its hash; the first of a name keeps it."""
        if name not in self._by_hash and block not in self._hash_of:
            self._by_hash[name] = block
            self._hash_of[block] = name

    def withdraw(self, blocks: Sequence[int]) -> None:
        """Let blocks be found no more: what they were to hold was not written."""
        for block in blocks:
            if (name := self._hash_of.pop(block, None)) is not None:
                del self._by_hash[name]
                if block in self._free:
                    self._free.move_to_end(block, last=False)

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference each. The end of a sequence becomes the first to be reused."""
        for block in reversed(blocks):
            self._refs[block] -= 1
            if self._refs[block] == 0:
                self._free[block] = None
                if block not in self._hash_of:  # nothing to find here again; guesses that were wrong leave such
                    self._free.move_to_end(block, last=False)

    def check(self) -> None:
        """Assert the invariant above."""
        assert all(refs >= 0 for refs in self._refs)
        assert sorted(self._free) == [b for b, refs in enumerate(self._refs) if refs == 0 and b != 0]
        assert {block: name for name, block in self._by_hash.items()} == self._hash_of
        named = [block in self._hash_of for block in self._free]
        assert named == sorted(named)
