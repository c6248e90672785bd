"""The file that holds a checkpoint's vocabulary, as the content of a byte-level BPE `tokenizer.json`.

Knows which file to read. Refuses to know how its content encodes text.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from glm_cluster.errors import CheckpointError
from glm_cluster.text import tiktoken

Ranges: TypeAlias = tuple[tuple[int, int], ...]  # half-open


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFile:
    """Where the vocabulary was read, and what a `tokenizer.json` says or would say."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def from_directory(cls, directory: Path) -> "TokenizerFile":
        """Read `tokenizer.json`, else convert `tokenizer.model`, or raise CheckpointError naming both."""
        path, ranks = directory / "tokenizer.json", directory / tiktoken.FILE
        if path.exists():
            return cls(path=path, content=_byte_level_bpe(path))
        if ranks.exists():
            return cls(path=ranks, content=tiktoken.tokenizer_json(directory))
        raise CheckpointError(
            f"{path} cannot be read, nor {ranks.name} beside it; a checkpoint needs one of them: fetch it again"
        )

    def unused_ids(self, vocab_size: int) -> Ranges:
        """As `Tokenizer.unused_ids`, for who samples and builds no tokenizer."""
        try:
            used = {
                *self.content["model"]["vocab"].values(),
                *(t["id"] for t in self.content.get("added_tokens") or []),
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self.path} cannot be used ({error}); fetch it again") from error
        return unused_ids(used, vocab_size)


def has_tokenizer(directory: Path) -> bool:
    """Whether there is a file to read."""
    return any((directory / name).exists() for name in ("tokenizer.json", tiktoken.FILE))


def unused_ids(used: Collection[int], vocab_size: int) -> Ranges:
    """The ids below `vocab_size` that are not used."""
    ranges: list[tuple[int, int]] = []
    for id in (id for id in range(vocab_size) if id not in used):
        if ranges and ranges[-1][1] == id:
            ranges[-1] = (ranges[-1][0], id + 1)
        else:
            ranges.append((id, id + 1))
    return tuple(ranges)


def _byte_level_bpe(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); fetch it again") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(content, dict) or not _is_byte_level_bpe(content):
        raise CheckpointError(f"{path} is not a byte-level BPE; GLM checkpoints have no other kind")
    return content


def _is_byte_level_bpe(content: dict[str, Any]) -> bool:
    if not isinstance(model := content.get("model"), dict):
        return False
    decoder = content.get("decoder") or {}
    decoders = [decoder, *decoder.get("decoders", [])]
    return model.get("type") == "BPE" and any(one.get("type") == "ByteLevel" for one in decoders)
