"""Who was sent which beginnings."""

from glm_cluster.deploy.prefixes import BLOCK, Prefixes, prefix_hashes


def prompt(seed: int, num_blocks: int = 4) -> tuple[int, ...]:
    return tuple((seed * 7919 + i) % 50000 for i in range(num_blocks * BLOCK))


def matched(prefixes: Prefixes, ids: tuple[int, ...]) -> dict[str, int]:
    hashes = prefix_hashes(ids)
    return prefixes.matched(hashes, prefixes.known(hashes))


def test_a_prefix_hash_covers_everything_before_it():
    a = prompt(1)
    b = (a[0] + 1, *a[1:])
    assert len(prefix_hashes(a)) == 4
    assert not set(prefix_hashes(a)) & set(prefix_hashes(b))
    assert prefix_hashes(a[: 3 * BLOCK - 1]) == prefix_hashes(a)[:2]


def test_what_follows_a_long_beginning_costs_nothing():
    assert prefix_hashes(prompt(1, 500)) == prefix_hashes(prompt(1, 100))


def test_a_shared_prefix_remembers_several_holders():
    prefixes = Prefixes()
    prefixes.note(prefix_hashes(prompt(1, 2)), "a")
    prefixes.note(prefix_hashes(prompt(1, 1)), "b")
    assert matched(prefixes, prompt(1, 2)) == {"a": 2 * BLOCK, "b": BLOCK}


def test_the_holder_of_a_conversation_is_known_however_many_share_its_beginning():
    """Only holders of the very first block were once considered, and of those only four were remembered."""
    prefixes = Prefixes()
    system = prompt(1, 2)
    prefixes.note(prefix_hashes(system + prompt(2)), "home")
    for i in range(20):
        prefixes.note(prefix_hashes(system + prompt(100 + i)), f"r{i}")
    assert matched(prefixes, system + prompt(2))["home"] == 6 * BLOCK


def test_memory_is_bounded():
    prefixes = Prefixes(capacity=100)
    for seed in range(50):
        prefixes.note(prefix_hashes(prompt(seed)), f"r{seed}")
    assert len(prefixes) == 100
    assert matched(prefixes, prompt(49)) == {"r49": 4 * BLOCK}
    assert matched(prefixes, prompt(0)) == {}


def test_what_is_left_of_a_prompt_is_its_beginning():
    """The first block was once forgotten first, and with it everything that builds on it."""
    prefixes = Prefixes(capacity=5)
    prefixes.note(prefix_hashes(prompt(1)), "a")
    prefixes.note(prefix_hashes(prompt(2, 3)), "b")
    assert matched(prefixes, prompt(1)) == {"a": 2 * BLOCK}
    assert matched(prefixes, prompt(2, 3)) == {"b": 3 * BLOCK}


def test_nothing_is_known_of_a_short_prompt():
    prefixes = Prefixes()
    prefixes.note(prefix_hashes((1, 2, 3)), "a")
    assert (len(prefixes), matched(prefixes, (1, 2, 3))) == (0, {})
