"""Token ids to text while they come.

Knows that a character may be spread over several tokens. Refuses to know what the text means.
"""

import codecs
from collections.abc import Iterable

from glm_cluster.text.tokenizer import Tokenizer


class Detokenizer:
    """One stream's decoder. What `push` and `finish` return, put together, is `Tokenizer.decode` of all ids.

    With `skip_newline` one line break at the very beginning is left out.
    Constant work per token: the state is the at most three bytes of an unfinished character.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_newline: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_newline = skip_newline
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """Return the characters that are complete now, keeping back the bytes of one that is not."""
        text = self._decoder.decode(self._tokenizer.to_bytes(ids))
        if self._skip_newline and text:
            self._skip_newline = False
            return text.removeprefix("\n")
        return text

    def finish(self) -> str:
        """Return U+FFFD if the stream ended inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)
