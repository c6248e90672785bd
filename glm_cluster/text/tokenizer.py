"""Text to token ids and back, for a byte-level BPE `tokenizer.json`.

Knows which ids are control tokens and never makes one out of text: `<|user|>` typed by a user is eight characters.
Only a `Special` segment becomes a control token. Refuses to know chat templates, and adds no token nobody asked for.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import tokenizers

from glm_cluster.errors import CheckpointError


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
    """A checkpoint's tokenizer. `special_ids` maps the string of each control token to its id."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        added = content.get("added_tokens") or []
        self.special_ids: Mapping[str, int] = MappingProxyType({token["content"]: token["id"] for token in added})
        self._token_bytes = _token_bytes(content["model"]["vocab"], added)
        self._bpe = _without_added_tokens(content)

    @classmethod
    def from_directory(cls, path: Path) -> "Tokenizer":
        """Read `tokenizer.json`, or raise CheckpointError naming it."""
        file = path / "tokenizer.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read ({error.strerror}); a checkpoint needs one") from error
        except ValueError as error:
            raise CheckpointError(f"{file} is not JSON ({error}); fetch it again") from error
        if not _is_byte_level_bpe(content):
            raise CheckpointError(f"{file} is not a byte-level BPE; GLM checkpoints have no other kind")
        try:
            tokenizer = cls(content)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be used ({error}); fetch it again") from error
        tokenizer._check_specials_stay_text(file)
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """One more than the highest id that has a token. The model's own vocabulary may be padded beyond it."""
        return len(self._token_bytes)

    def encode_batch(self, texts: Sequence[Text]) -> list[tuple[int, ...]]:
        """Encode all texts in one call of the library."""
        parts = [(Plain(text),) if isinstance(text, str) else text for text in texts]
        plain = [_well_formed(segment.text) for part in parts for segment in part if isinstance(segment, Plain)]
        encoded = iter(self._bpe.encode_batch_fast(plain, add_special_tokens=False))
        return [tuple(id for segment in part for id in _ids(segment, encoded)) for part in parts]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, control tokens left out and broken UTF-8 shown as U+FFFD."""
        return self.to_bytes(ids).decode("utf-8", "replace")

    def to_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes that `ids` stand for. Control tokens and ids without a token stand for none."""
        known = self._token_bytes
        return b"".join([known[id] for id in ids if id < len(known)])

    def _check_specials_stay_text(self, file: Path) -> None:
        controls = set(self.special_ids.values())
        for special, ids in zip(self.special_ids, self.encode_batch(list(self.special_ids)), strict=True):
            if controls.intersection(ids):
                raise CheckpointError(f"{file} makes the control token {special!r} out of plain text; it is not safe")


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
    bare = {**content, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(bare, ensure_ascii=False))
    except Exception as error:  # the library's binding raises bare Exception
        raise ValueError(str(error)) from error


def _token_bytes(vocab: Mapping[str, int], added: Iterable[Mapping[str, Any]]) -> tuple[bytes, ...]:
    """Return the bytes of every id; none for ids flagged special, which are never shown, and for holes."""
    byte_of = _byte_of_character()
    table = {id: _spelt(token, byte_of) for token, id in vocab.items()}
    table |= {token["id"]: b"" if token["special"] else token["content"].encode() for token in added}
    return tuple(table.get(id, b"") for id in range(max(table) + 1))


def _spelt(token: str, byte_of: Mapping[str, int]) -> bytes:
    try:
        return bytes([byte_of[character] for character in token])
    except KeyError:  # not spelt in the alphabet: the library shows it as it stands
        return token.encode()


def _byte_of_character() -> dict[str, int]:
    """Return GPT-2's alphabet: printable Latin-1 characters stand for themselves, the others for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def _is_byte_level_bpe(content: Any) -> bool:
    if not isinstance(content, dict) or not isinstance(model := content.get("model"), dict):
        return False
    decoder = content.get("decoder") or {}
    decoders = [decoder, *decoder.get("decoders", [])]
    return model.get("type") == "BPE" and any(one.get("type") == "ByteLevel" for one in decoders)


def _well_formed(text: str) -> str:
    """Return `text` with lone surrogates, which have no UTF-8, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
