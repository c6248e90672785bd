"""Tags in a text that comes in pieces."""


def begun(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)


def without_begun(text: str, tag: str) -> tuple[str, str]:
    """`text` in two: what surely belongs to no `tag`, and what may be the beginning of one."""
    size = begun(text, tag)
    return text[: len(text) - size], text[len(text) - size :]


class Until:
    """Reads up to the first of some tags."""

    def __init__(self, *tags: str) -> None:
        self.found = ""  # the tag that came
        self._tags = tags
        self._parts: list[str] = []
        self._pending = ""

    def push(self, text: str) -> tuple[str, str] | None:
        """Return all that came before the tag and what comes after it; None as long as none has come."""
        text = self._pending + text
        if places := [(place, tag) for tag in self._tags if (place := text.find(tag)) >= 0]:
            place, self.found = min(places)
            return "".join((*self._parts, text[:place])), text[place + len(self.found) :]
        ready = len(text) - max(begun(text, tag) for tag in self._tags)
        self._parts.append(text[:ready])
        self._pending = text[ready:]
        return None

    def take(self) -> str:
        """Return what surely comes before a tag, which `push` then leaves out."""
        ready, self._parts = "".join(self._parts), []
        return ready


class TrailingSpace:
    """Holds white space back until something follows it, as that at the end is left out."""

    def __init__(self) -> None:
        self._held: list[str] = []

    def push(self, text: str) -> str:
        """Return what was held back and what can go with it now."""
        if not (solid := text.rstrip()):
            self._held.append(text)
            return ""
        ready = "".join((*self._held, solid))
        self._held = [text[len(solid) :]]
        return ready

    def release(self) -> str:
        """Return what is held back, as it turns out to belong to the text."""
        held = "".join(self._held)
        self._held = []
        return held
