"""Stand-ins for the special-token strings that users type.

A rendered template is one string in which `<|user|>` from the template and `<|user|>` from a message look the same. So
before rendering every such string in a message is replaced by one private-use character, and put back afterwards,
when the template's own have been found. Knows strings; refuses to know templates and tokens.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain

from glm_cluster.errors import InvalidRequest

PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class Shield:
    """One stand-in per special string, and a seam.

    A string may end in the beginning of a special (`<|us`) and the next one go on with it (`er|>`): a template that
    joins the two would forge it. The seam is put between.
    """

    def __init__(self, specials: Iterable[str], avoid: Iterable[str]) -> None:
        """Choose characters that occur in none of the strings to `avoid`."""
        specials = tuple(specials)
        used = set(chain.from_iterable(avoid))
        free = (char for code in chain(*PRIVATE_USE) if (char := chr(code)) not in used)
        try:
            self._seam = next(free)
            self._stand_ins = {special: next(free) for special in specials}
        except StopIteration:
            raise InvalidRequest("the messages use every private-use character; leave some out") from None
        self._originals = str.maketrans({char: special for special, char in self._stand_ins.items()} | {self._seam: ""})

        self._beginnings = tuple(special[:size] for special in specials for size in range(1, len(special)))

    def cover(self, value: object, exempt: Collection[str] = ()) -> object:
        """Return `value` with every string in it, however deep, made harmless. `exempt` specials stay."""
        if isinstance(value, str):
            return self._cover(value, exempt)
        if isinstance(value, Mapping):
            return {self.cover(key, exempt): self.cover(item, exempt) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.cover(item, exempt) for item in value]
        return value

    def uncover(self, text: str) -> str:
        """Put the special strings back and take the seams out."""
        return text.translate(self._originals)

    def _cover(self, text: str, exempt: Collection[str]) -> str:
        shielded = {special: char for special, char in self._stand_ins.items() if special not in exempt}
        if pattern := one_of(shielded):
            text = pattern.sub(lambda match: shielded[match[0]], text)
        return text + self._seam if text.endswith(self._beginnings) else text


def one_of(strings: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern for any of `strings`, the longest first, or None if there are none."""
    longest_first = sorted(strings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def strings_in(value: object) -> Iterator[str]:
    """Yield every string in a value made of mappings, lists and scalars."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings_in(key)
            yield from strings_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_in(item)
