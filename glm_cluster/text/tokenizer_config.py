"""What a checkpoint says about its tokenizer beside the vocabulary: tokenizer_config.json and chat-template files.

Knows the keys of those files. Refuses to know which id a token has and what a template means.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_cluster.errors import CheckpointError

UNLIMITED = int(1e30)  # what Transformers writes for "no maximum"
SIDES = ("left", "right")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """The files' content; a checkpoint without them has the defaults."""

    tokens: Mapping[str, str]  # `eos_token` and its like, which templates may write
    extra_tokens: tuple[str, ...]  # special tokens without such a name
    added_tokens: tuple[Mapping[str, Any], ...]  # `added_tokens_decoder`, in the form that tokenizer.json has
    chat_template: str | None
    padding_side: str
    truncation_side: str
    model_max_length: int

    @classmethod
    def from_directory(cls, path: Path) -> "TokenizerConfig":
        """Read the files, or raise CheckpointError naming the one that is malformed."""
        file = path / "tokenizer_config.json"
        raw = _mapping(file)
        try:
            return cls(
                tokens=_tokens(raw),
                extra_tokens=_extra_tokens(raw),
                added_tokens=_added_tokens(raw),
                chat_template=_chat_template(path, raw),
                padding_side=_side(raw.get("padding_side", "left")),
                truncation_side=_side(raw.get("truncation_side", "right")),
                model_max_length=int(raw.get("model_max_length") or UNLIMITED),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be used ({error}); fetch it again") from error


def _mapping(file: Path) -> dict[str, Any]:
    """Return the file's mapping; empty where there is no file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} must hold a mapping")
    return content


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except ValueError as error:
        raise CheckpointError(f"{file} is not UTF-8 ({error}); fetch it again") from error


def _tokens(raw: Mapping[str, Any]) -> dict[str, str]:
    """Return the named tokens; those of a mapping under `extra_special_tokens` are named too."""
    extra = raw.get("extra_special_tokens")
    tokens = {key: _content(value) for key, value in {**raw, **(extra if isinstance(extra, dict) else {})}.items()}
    return {key: value for key, value in tokens.items() if key.endswith("_token") and isinstance(value, str)}


def _extra_tokens(raw: Mapping[str, Any]) -> tuple[str, ...]:
    extra = raw.get("extra_special_tokens", raw.get("additional_special_tokens"))
    return tuple(_content(token) for token in extra) if isinstance(extra, list) else ()


def _content(token: Any) -> Any:
    """A token is a string or a mapping with its content."""
    return token.get("content") if isinstance(token, dict) else token


def _added_tokens(raw: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    by_id = {int(id): token for id, token in (raw.get("added_tokens_decoder") or {}).items()}
    return tuple(
        {"id": id, "content": str(token["content"]), **{flag: bool(token.get(flag)) for flag in flags}}
        for id, token in sorted(by_id.items())
    )


def _chat_template(path: Path, raw: Mapping[str, Any]) -> str | None:
    """Return the text of `chat_template.jinja`, else of tokenizer_config.json, else of `chat_template.json`."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return _text(file)
    return _default(raw.get("chat_template")) or _default(_mapping(path / "chat_template.json").get("chat_template"))


def _default(template: object) -> str | None:
    """Return the template, or the one named default where a checkpoint has several."""
    if isinstance(template, list):
        return next((_default(one.get("template")) for one in template if one.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _side(side: object) -> str:
    if side not in SIDES:
        raise ValueError(f"a side is one of {SIDES}, not {side!r}")
    return str(side)
