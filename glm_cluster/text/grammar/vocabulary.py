"""A tokenizer's tokens as the grammar library wants them: the bytes of each, and which are control tokens.

A control token matches no text. A lark grammar may name one, `<|observation|>` without quotes.
"""

from collections.abc import Collection, Sequence

import llguidance

from glm_cluster.text.tokenizer import Tokenizer


class Vocabulary:
    """`library` is what grammars are compiled for, `num_words` the 32-bit words of a mask over the model's rows."""

    def __init__(self, tokens: "_Tokens", *, stop_ids: Collection[int], vocab_size: int) -> None:
        self.num_words = -(-vocab_size // 32)
        self.library = llguidance.LLTokenizer(
            tokens,  # type: ignore[arg-type]  # its own wrapper wants a tokenizer that it tries out
            eos_token=sorted(stop_ids),
            slices=llguidance.LLTokenizer.json_slices(),
        )

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, stop_ids: Collection[int], vocab_size: int) -> "Vocabulary":
        """Every token of the tokenizer. `stop_ids` end an output, `vocab_size` is the model's."""
        pieces = list(tokenizer.pieces)
        for name, id in tokenizer.special_ids.items():
            pieces[id] = name.encode()
        return cls(
            _Tokens(pieces, tokenizer.special_ids.values(), min(stop_ids), tokenizer),
            stop_ids=stop_ids,
            vocab_size=vocab_size,
        )

    @classmethod
    def of_bytes(cls, control_tokens: Collection[str] = ()) -> "Vocabulary":
        """The 256 bytes, the control tokens and one that ends: enough to find fault with a grammar, and quick."""
        pieces = [*(bytes([byte]) for byte in range(256)), b"<|end|>", *(name.encode() for name in control_tokens)]
        specials = range(256, len(pieces))
        return cls(_Tokens(pieces, specials, 256, None), stop_ids=(256,), vocab_size=len(pieces))


class _Tokens:
    """What the library asks of a tokenizer; it splits text that a grammar leaves no choice about as the model would."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self, tokens: Sequence[bytes], special_ids: Collection[int], stop_id: int, tokenizer: Tokenizer | None
    ) -> None:
        self.tokens = tokens
        self.special_token_ids = list(special_ids)
        self.eos_token_id = stop_id
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        if self._tokenizer is None:
            return list(text.encode() if isinstance(text, str) else text)
        plain = text if isinstance(text, str) else text.decode()
        return list(self._tokenizer.encode_batch([plain])[0])
