"""Prompts of a given length, made of a tokenizer's own ids. Knows no model and no wire."""

import random
from typing import TypeAlias

from glm_cluster.errors import ConfigError
from glm_cluster.text.tokenizer import Tokenizer

Prompt: TypeAlias = tuple[int, ...] | str


def draw_ids(tokenizer: Tokenizer, *, count: int, length: int, seed: int) -> list[tuple[int, ...]]:
    """Return `count` prompts of `length` plain ids each: no control tokens, no holes; the same for the same seed."""
    controls = set(tokenizer.special_ids.values())
    holes = {id for low, high in tokenizer.unused_ids(tokenizer.vocab_size) for id in range(low, high)}
    plain = [id for id in range(tokenizer.vocab_size) if id not in controls | holes]
    if not plain:
        raise ConfigError("the tokenizer has no plain tokens to make prompts of; give another with --tokenizer")
    draw = random.Random(seed)
    return [tuple(draw.choices(plain, k=length)) for _ in range(count)]


def as_text(tokenizer: Tokenizer, prompts: list[tuple[int, ...]]) -> list[Prompt]:
    """The same prompts for a server that takes no ids. Their lengths may change on the way back to ids."""
    return [tokenizer.decode(ids) for ids in prompts]
