"""Token ids to text while they come.

Knows that a character may be spread over several tokens. Refuses to know what the text means.
"""

import codecs
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from glm_cluster.text.tokenizer import Tokenizer


class Detokenizer:
    """One stream's decoder. What `push` and `finish` return, put together, is `Tokenizer.decode` of all ids.

    With `skip_newline` one line break at the very beginning is left out. `shown` are control tokens to show, by id, for
    whoever looks for them.
    Constant work per token: the state is the at most three bytes of an unfinished character.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_newline: bool = False,
        shown: Mapping[int, bytes] = MappingProxyType({}),
    ) -> None:
        self._tokenizer = tokenizer
        self._shown = shown
        self._skip_newline = skip_newline
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Sequence[int]) -> str:
        """Return the characters that are complete now, keeping back the bytes of one that is not."""
        text = self._decoder.decode(self._bytes(ids))
        if self._skip_newline and text:
            self._skip_newline = False
            return text.removeprefix("\n")
        return text

    def finish(self) -> str:
        """Return U+FFFD if the stream ended inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)

    def _bytes(self, ids: Sequence[int]) -> bytes:
        if self._shown.keys().isdisjoint(ids):
            return self._tokenizer.to_bytes(ids)
        return b"".join(self._shown.get(id) or self._tokenizer.to_bytes((id,)) for id in ids)
