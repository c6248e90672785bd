"""The block pool keeps its invariant through any history, and shares only what is equal."""

import random

import pytest

from glm_cluster.engine.blocks import ROOT_HASH, BlockPool, OutOfBlocks, block_hash


def test_allocate_is_all_or_nothing() -> None:
    pool = BlockPool(5)
    with pytest.raises(OutOfBlocks):
        pool.allocate(5)
    assert pool.num_free == pool.num_blocks == 4
    assert 0 not in pool.allocate(4)


def test_a_released_block_is_found_until_it_is_handed_out() -> None:
    pool = BlockPool(3)
    (block,) = pool.allocate(1)
    name = block_hash(ROOT_HASH, [1, 2])
    pool.publish(block, name)
    pool.release([block])
    assert pool.share([name]) == [block]
    pool.release([block])
    pool.allocate(2)
    assert pool.share([name]) == []


def test_share_takes_the_longest_known_prefix() -> None:
    pool = BlockPool(9)
    names = [bytes([i]) for i in range(4)]
    blocks = pool.allocate(3)
    for block, name in zip(blocks, [names[0], names[1], names[3]], strict=True):
        pool.publish(block, name)
    assert pool.share(names) == blocks[:2]


def test_least_recently_used_goes_first_and_tails_before_heads() -> None:
    pool = BlockPool(5)
    first, second = pool.allocate(2), pool.allocate(2)
    for block in first + second:
        pool.publish(block, bytes([block]))
    pool.release(second)
    pool.release(first)
    assert pool.allocate(4) == [second[1], second[0], first[1], first[0]]


def test_what_nobody_can_find_again_goes_before_anything_cached() -> None:
    """A guess that was wrong gives its block back step after step: it must not push a cached prefix out each time."""
    pool = BlockPool(5)
    cached = pool.allocate(3)
    for block in cached:
        pool.publish(block, bytes([block]))
    pool.release(cached)
    for _ in range(9):
        pool.release(pool.allocate(1))
    assert pool.share([bytes([block]) for block in cached]) == cached


def test_what_is_withdrawn_is_not_found_and_goes_first() -> None:
    pool = BlockPool(5)
    kept, gone = pool.allocate(1), pool.allocate(1)
    for block in kept + gone:
        pool.publish(block, bytes([block]))
    pool.release(kept)
    pool.release(gone)
    pool.withdraw([*gone, *gone])
    pool.check()
    assert pool.share([bytes(gone)]) == []
    assert pool.allocate(1) == gone
    assert pool.share([bytes(kept)]) == kept


def test_hashes_depend_on_everything_before() -> None:
    assert block_hash(block_hash(ROOT_HASH, [1, 2]), [3, 4]) != block_hash(block_hash(ROOT_HASH, [1, 9]), [3, 4])
    assert block_hash(ROOT_HASH, [1, 23]) != block_hash(ROOT_HASH, [12, 3])


@pytest.mark.parametrize("seed", range(5))
def test_invariant_holds_through_a_random_history(seed: int) -> None:
    rng, pool, held = random.Random(seed), BlockPool(17), []
    for _ in range(600):
        choice = rng.random()
        if choice < 0.4:
            try:
                held.append(pool.allocate(rng.randrange(1, 5)))
            except OutOfBlocks:
                assert pool.num_free < 4
        elif choice < 0.6 and held:
            pool.publish(rng.choice(rng.choice(held)), bytes([rng.randrange(30)]))
        elif choice < 0.75:
            held += [blocks] if (blocks := pool.share([bytes([rng.randrange(30)])])) else []
        elif choice < 0.8:
            pool.withdraw([rng.randrange(1, 17)])
        elif held:
            pool.release(held.pop(rng.randrange(len(held))))
        pool.check()
    for blocks in held:
        pool.release(blocks)
    pool.check()
    assert pool.num_free == 16
