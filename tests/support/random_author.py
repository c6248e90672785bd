"""Somebody who writes at random what a matcher lets through, of bytes, and likes to close what is open."""

import random
from collections.abc import Collection

import numpy as np

from glm_cluster.text.grammar.matcher import Matcher

_CLOSERS = b'"]}'


def random_output(matcher: Matcher, stop_ids: Collection[int], *, seed: str, most: int) -> list[int] | None:
    """Ids without the stop token; None if there would be more than `most`: chance may never find how a pattern ends."""
    rng, output = random.Random(seed), []
    closers = {*_CLOSERS, *stop_ids}
    while len(output) < most:
        ids = np.flatnonzero(np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little")).tolist()
        closing = [id for id in ids if id in closers]
        output.append(rng.choice(closing if closing and rng.random() < 0.8 else ids))
        if output[-1] in stop_ids:
            return output[:-1]
        matcher.take(output[-1:])
    return None
