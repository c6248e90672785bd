"""Token ids to text while they come.

Knows that a character may be spread over several tokens. Refuses to know what the text means.
"""

import codecs
from collections.abc import Iterable

from glm_cluster.text.tokenizer import Tokenizer


class Detokenizer:
    """One stream's decoder. What `push` and `finish` return, put together, is `Tokenizer.decode` of all ids.

    Constant work per token: the state is the at most three bytes of an unfinished character.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """Return the characters that are complete now, keeping back the bytes of one that is not."""
        return self._decoder.decode(self._tokenizer.to_bytes(ids))

    def finish(self) -> str:
        """Return U+FFFD if the stream ended inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)
