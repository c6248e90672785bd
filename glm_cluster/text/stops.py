"""Stop strings in a text that comes in pieces.

Knows characters. Refuses to know tokens: who pushes token by token learns at which one a stop string was complete.
"""

from collections import deque
from collections.abc import Sequence


class StopStrings:
    """The stop strings of a request, as one automaton (Aho and Corasick's) that all its choices share.

    A state is the longest end of the text that begins a stop string; `depths` says how long that is, and `found`
    which stop string ends there, the longest of several.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._shorter = [0]  # the state of the next shorter end that begins a stop string
        self.depths = [0]
        self.found: list[str | None] = [None]
        for stop in stops:
            self._insert(stop)
        self._link()

    def step(self, state: int, char: str) -> int:
        """The state after one more character."""
        while (after := self._next[state].get(char)) is None:
            if state == 0:
                return 0
            state = self._shorter[state]
        return after

    def _insert(self, stop: str) -> None:
        state = 0
        for char in stop:
            if (after := self._next[state].get(char)) is None:
                after = self._next[state][char] = len(self._next)
                self._next.append({})
                self._shorter.append(0)
                self.depths.append(self.depths[state] + 1)
                self.found.append(None)
            state = after
        self.found[state] = stop

    def _link(self) -> None:
        """Find every state's next shorter one, the shorter states first."""
        todo = deque(self._next[0].values())
        while todo:
            state = todo.popleft()
            if self.found[state] is None:
                self.found[state] = self.found[self._shorter[state]]
            for char, after in self._next[state].items():
                self._shorter[after] = self.step(self._shorter[state], char)
                todo.append(after)


class StopMatcher:
    """Lets a text through up to the first stop string to be complete, however the text is cut into pieces.

    Keeps back only what may yet become a stop string. `matched` is the one that was found; nothing comes after it.
    With `include` the text ends behind the stop string, and nothing needs to be kept back.
    """

    def __init__(self, stops: StopStrings, *, include: bool) -> None:
        self._stops = stops
        self._include = include
        self._state = 0
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str, *, armed: bool = True) -> str:
        """Return what may be shown now. A stop string that ends here while not `armed` is text like any other."""
        for count, char in enumerate(text, 1):
            self._state = self._stops.step(self._state, char)
            if armed and (found := self._stops.found[self._state]) is not None:
                self.matched = found
                seen, self._held = self._held + text[:count], ""
                return seen if self._include else seen[: -len(found)]
        if self._include:
            return text
        seen = self._held + text
        shown = len(seen) - self._stops.depths[self._state]
        self._held = seen[shown:]
        return seen[:shown]

    def finish(self) -> str:
        """Return what was kept back, at the end of the text."""
        held, self._held = self._held, ""
        return held
