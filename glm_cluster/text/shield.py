"""Stand-ins for the special-token strings that users type.

A rendered template is one string in which `<|user|>` from the template and `<|user|>` from a message look the same. So
before rendering every such string in a message is replaced by one private-use character, and put back afterwards,
when the template's own have been found. Knows strings; refuses to know templates and tokens.

Texts are megabytes long at times and other threads must get their turn, so nothing here is one long call that holds the
interpreter: strings are sought one by one (`str.replace`), characters by class and in pieces, never an alternation of
strings.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain

from glm_cluster.errors import InvalidRequest

_PIECE = 64 << 10  # characters that a pattern goes through in one call
PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_PRIVATE_RUN = re.compile("[{}]+".format("".join(f"{chr(area.start)}-{chr(area.stop - 1)}" for area in PRIVATE_USE)))


class Shield:
    """One stand-in per special string, one mark for where the template itself writes it, and a seam.

    A string may end in the beginning of a special (`<|us`) and the next one go on with it (`er|>`): a template that
    joins the two would forge it. The seam is put between.
    """

    def __init__(self, specials: Iterable[str], avoid: Iterable[str]) -> None:
        """Choose characters that occur in none of the strings to `avoid`."""
        longest_first = sorted(specials, key=len, reverse=True)
        used = set(chain.from_iterable(run for text in avoid for run in _private_runs(text)))
        free = (char for code in chain(*PRIVATE_USE) if (char := chr(code)) not in used)
        try:
            self._seam, self.end = next(free), next(free)  # `end`: a character of nobody's, to mark a place with
            self._stand_ins = {special: next(free) for special in longest_first}
            self._marks = {special: next(free) for special in longest_first}
        except StopIteration:
            raise InvalidRequest("the messages use every private-use character; leave some out") from None
        self._originals = {char: special for special, char in self._stand_ins.items()} | {self._seam: ""}
        self._beginnings = tuple({special[:size] for special in longest_first for size in range(1, len(special))})

    def cover(self, value: object, exempt: Collection[str] = ()) -> object:
        """Return `value` with every string in it, however deep, made harmless. `exempt` specials stay."""
        if isinstance(value, str):
            return self._cover(value, exempt)
        if isinstance(value, Mapping):
            return {self.cover(key, exempt): self.cover(item, exempt) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.cover(item, exempt) for item in value]
        return value

    def split(self, prompt: str) -> Iterator[tuple[str, str | None]]:
        """Cut a prompt at the special strings left in it, which are the template's own.

        Yields the text before each, with what `cover` took out put back, and the special; None at the end.
        """
        for special, mark in self._marks.items():
            prompt = prompt.replace(special, mark)
        specials = {mark: special for special, mark in self._marks.items()}
        pattern = re.compile(f"([{''.join(specials)}])" if specials else "(?!)()")
        begun: list[str] = []
        for piece in _pieces(prompt):
            *whole, last = pattern.split(piece)
            for text, mark in zip(whole[::2], whole[1::2], strict=True):
                yield self._uncover("".join((*begun, text))), specials[mark]
                begun.clear()
            begun.append(last)
        yield self._uncover("".join(begun)), None

    def _cover(self, text: str, exempt: Collection[str]) -> str:
        for special, char in self._stand_ins.items():
            if special not in exempt:
                text = text.replace(special, char)
        return text + self._seam if text.endswith(self._beginnings) else text

    def _uncover(self, text: str) -> str:
        if text.isascii():
            return text
        pattern = re.compile(f"[{''.join(self._originals)}]")
        return "".join(pattern.sub(lambda match: self._originals[match[0]], piece) for piece in _pieces(text))


def _private_runs(text: str) -> list[str]:
    return [] if text.isascii() else [run for piece in _pieces(text) for run in _PRIVATE_RUN.findall(piece)]


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))


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
