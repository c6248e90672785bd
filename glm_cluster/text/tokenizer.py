"""Text to token ids and back, for a byte-level BPE.

Knows which ids are control tokens and never makes one out of text: `<|user|>` typed by a user is eight characters.
Only a `Special` segment becomes a control token. Refuses to know chat templates and file formats, and adds no token
nobody asked for.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import tokenizers

from glm_cluster.errors import CheckpointError
from glm_cluster.text.alphabet import spell, unspell
from glm_cluster.text.tokenizer_file import Ranges, TokenizerFile, unused_ids


@dataclass(frozen=True, slots=True)
class Special:
    """One control token."""

    id: int


@dataclass(frozen=True, slots=True)
class Plain:
    """Characters, whatever they spell."""

    text: str


Segment: TypeAlias = Special | Plain
Text: TypeAlias = str | tuple[Segment, ...]


class Tokenizer:
    """A checkpoint's tokenizer.

    `special_ids` maps the string of each control token to its id. `frame` holds the ids that the checkpoint's own
    tokenizer puts before and after a text; nothing here adds them by itself.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        added = content.get("added_tokens") or []
        table = _token_bytes(content["model"]["vocab"], added)
        self.special_ids: Mapping[str, int] = MappingProxyType({token["content"]: token["id"] for token in added})
        self._added = {token["id"]: token["content"] for token in added}
        self.frame = _frame(content.get("post_processor"))
        self._token_bytes = tuple(table.get(id, b"") for id in range(max(table) + 1))
        self._used = frozenset(table)
        self._controls = {id: content.encode() for content, id in self.special_ids.items()}
        self._bpe = _without_added_tokens(content)

    @classmethod
    def from_directory(cls, path: Path) -> "Tokenizer":
        """Read `tokenizer.json`, else `tokenizer.model`, or raise CheckpointError naming the file at fault."""
        file = TokenizerFile.from_directory(path)
        try:
            tokenizer = cls(file.content)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file.path} cannot be used ({error}); fetch it again") from error
        tokenizer._check_specials_stay_text(file.path)
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """One more than the highest id that has a token. The model's own vocabulary may be padded beyond it."""
        return len(self._token_bytes)

    @property
    def pieces(self) -> Sequence[bytes]:
        """The bytes of each id, in order; none of a control token that is never shown, and of an id without a token."""
        return self._token_bytes

    def unused_ids(self, vocab_size: int) -> Ranges:
        """Return the ids that name no token, of a model with `vocab_size` rows: holes and padding."""
        return unused_ids(self._used, vocab_size)

    def check_fits(self, *, vocab_size: int, special_ids: Collection[int], where: Path) -> None:
        """Raise CheckpointError naming `where` if this is another model's tokenizer.

        `special_ids` are those that the model's config.json ends and pads with.
        """
        if self.vocab_size > vocab_size:
            raise CheckpointError(
                f"the tokenizer in {where} has a token with id {self.vocab_size - 1}, but the model's vocabulary has "
                f"{vocab_size} rows; it is another model's: fetch the checkpoint again"
            )
        if nameless := [id for id in special_ids if id not in self._used]:
            raise CheckpointError(
                f"the tokenizer in {where} has no token with id {nameless[0]}, with which the model's config.json ends "
                "or pads; it is another model's: fetch the checkpoint again"
            )

    def encode_batch(self, texts: Sequence[Text]) -> list[tuple[int, ...]]:
        """Encode all texts in one call of the library."""
        parts = [(Plain(text),) if isinstance(text, str) else text for text in texts]
        plain = [well_formed(segment.text) for part in parts for segment in part if isinstance(segment, Plain)]
        encoded = iter(self._bpe.encode_batch_fast(plain, add_special_tokens=False))
        ids = [[_ids(segment, encoded) for segment in part] for part in parts]
        return [tuple(chain.from_iterable(part)) for part in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, control tokens left out and broken UTF-8 shown as U+FFFD."""
        return self.to_bytes(ids).decode("utf-8", "replace")

    def to_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes that `ids` stand for. Control tokens and ids without a token stand for none."""
        known = self._token_bytes
        return b"".join([known[id] for id in ids if id < len(known)])

    def spelt_out(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` as `decode` does, but with the control tokens' own strings in it."""
        known, added = self._token_bytes, self._added
        parts = [added[id].encode() if id in added else known[id] for id in ids if id < len(known)]
        return b"".join(parts).decode("utf-8", "replace")

    def spellings(self, ids: Iterable[int]) -> list[str]:
        """Return each of `ids` as the vocabulary spells it: bytes in GPT-2's alphabet; an id without a token as ""."""
        known, added = self._token_bytes, self._added
        return [added.get(id) or (spell(known[id]) if id < len(known) else "") for id in ids]

    def spelling(self, id: int) -> bytes:
        """Return what a token is shown as by itself: its bytes, or a control token's name; none without a token."""
        own = self._token_bytes[id] if id < len(self._token_bytes) else b""
        return own or self._controls.get(id, b"")

    def spans(self, text: str, ids: Sequence[int]) -> Ranges:
        """Return the range of characters of each of `ids`, which are the encoding of `text`; else raise ValueError.

        A token that holds part of a character covers the character, so ranges may overlap.
        """
        tokens = [self.to_bytes([id]) for id in ids]
        if b"".join(tokens) != (data := well_formed(text).encode()):
            raise ValueError("the ids are not the encoding of the text")
        begun = [0, *accumulate(int(byte & 0xC0 != 0x80) for byte in data)]  # characters that begin before each byte
        cuts = pairwise(accumulate((len(token) for token in tokens), initial=0))
        return tuple((begun[start + 1] - 1 if start < end else begun[start], begun[end]) for start, end in cuts)

    def _check_specials_stay_text(self, file: Path) -> None:
        controls = set(self.special_ids.values())
        for special, ids in zip(self.special_ids, self.encode_batch(list(self.special_ids)), strict=True):
            if controls.intersection(ids):
                raise CheckpointError(f"{file} makes the control token {special!r} out of plain text; it is not safe")


def library_tokenizer(content: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Build the library's tokenizer of a tokenizer.json's content, or raise ValueError."""
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
    except Exception as error:  # the library's binding raises bare Exception
        raise ValueError(str(error)) from error


def well_formed(text: str) -> str:
    """Return `text` with lone surrogates, which have no UTF-8, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _ids(segment: Segment, encoded: "Iterator[tokenizers.Encoding]") -> Sequence[int]:
    """Return the ids of one segment, taking the next of `encoded` if it is plain."""
    if isinstance(segment, Special):
        return (segment.id,)
    ids: Sequence[int] = next(encoded).ids
    return ids


def _without_added_tokens(content: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Build the bare BPE.

    The library looks for added tokens inside text before it splits it. Its switch `encode_special_tokens` spares only
    those flagged special, and `<think>` is not; a tokenizer that has none cannot find any.
    """
    return library_tokenizer(
        {**content, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    )


def _frame(post_processor: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids put around a text: ask the library, which knows every kind of post-processor, about one token."""
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    try:
        probe = library_tokenizer({"version": "1.0", "model": model, "post_processor": post_processor}).encode("a")
        text = probe.special_tokens_mask.index(0)
        if probe.special_tokens_mask.count(0) != 1:
            raise ValueError("it repeats the text")
    except ValueError as error:
        kind = post_processor.get("type") if isinstance(post_processor, dict) else post_processor
        raise ValueError(f"its post_processor of type {kind!r} does not put tokens around a text: {error}") from error
    return tuple(probe.ids[:text]), tuple(probe.ids[text + 1 :])


def _token_bytes(vocab: Mapping[str, int], added: Iterable[Mapping[str, Any]]) -> dict[int, bytes]:
    """Return the bytes of every id; none for ids flagged special, which are never shown."""
    table = {id: unspell(token) for token, id in vocab.items()}
    return table | {token["id"]: b"" if token["special"] else token["content"].encode() for token in added}
