"""The tokenizer as Transformers' users know it: a `tokenizer.json` with all that it says. No torch.

Here `<|user|>` in a text is the control token, and the checkpoint's own frame (`[gMASK]<sop>`) is put round a text: for
offline use with texts of one's own. What is served goes through `Tokenizer`, which does neither. Refuses to know
tensors.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import overload

import tokenizers

from glm_cluster.errors import CheckpointError, ConfigError, InvalidRequest
from glm_cluster.text.chat import ChatTemplate
from glm_cluster.text.tokenizer import library_tokenizer, well_formed
from glm_cluster.text.tokenizer_config import SIDES, UNLIMITED, TokenizerConfig
from glm_cluster.text.tokenizer_file import TokenizerFile

# Transformers' order of the named tokens; those with other names follow
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
Batch = tuple[list[list[int]], list[list[int]]]  # ids and attention mask, all rows equally long


class PageTokenizer:
    """Text to ids and back as `AutoTokenizer` does it.

    `eos_token`, `pad_token`, `bos_token`, `padding_side`, `truncation_side` and `model_max_length` may be set.
    """

    def __init__(self, library: tokenizers.Tokenizer, config: TokenizerConfig, template: ChatTemplate) -> None:
        self._library = library
        self._config = config
        self._template = template
        self.bos_token = config.tokens.get("bos_token")
        self.eos_token = config.tokens.get("eos_token")
        self.pad_token = config.tokens.get("pad_token")
        self.padding_side = config.padding_side
        self.truncation_side = config.truncation_side
        self.model_max_length = config.model_max_length

    @classmethod
    def from_directory(cls, path: Path) -> "PageTokenizer":
        """Read the checkpoint's tokenizer files, or raise CheckpointError naming the one at fault."""
        file, config = TokenizerFile.from_directory(path), TokenizerConfig.from_directory(path)
        try:
            library = library_tokenizer({**file.content, "truncation": None, "padding": None})
        except ValueError as error:
            raise CheckpointError(f"{file.path} cannot be used ({error}); fetch it again") from error
        named = [*config.tokens.values(), *config.extra_tokens]
        library.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in named])
        added = {token.content: id for id, token in library.get_added_tokens_decoder().items()}
        return cls(library, config, ChatTemplate.from_config(config, added, path))

    def __len__(self) -> int:
        """The number of tokens, added ones too."""
        return self._library.get_vocab_size(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """The number of tokens without the added ones."""
        return self._library.get_vocab_size(with_added_tokens=False)

    @property
    def bos_token_id(self) -> int | None:
        """None without such a token."""
        return self._id(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        """None without such a token."""
        return self._id(self.eos_token)

    @property
    def pad_token_id(self) -> int | None:
        """None without such a token."""
        return self._id(self.pad_token)

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token that the checkpoint's config names, once."""
        own = {"bos_token": self.bos_token, "eos_token": self.eos_token, "pad_token": self.pad_token}
        tokens = {**dict.fromkeys(NAMES), **self._config.tokens, **own}
        return list(dict.fromkeys(token for token in (*tokens.values(), *self._config.extra_tokens) if token))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return [id for id in self.convert_tokens_to_ids(self.all_special_tokens) if id is not None]

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        *,
        truncation: bool | None = None,
        max_length: int | None = None,
    ) -> list[int]:
        """Return the ids of one text; see `encode_batch`."""
        return self.encode_batch([text], add_special_tokens, truncation=truncation, max_length=max_length)[0]

    def encode_batch(
        self,
        texts: Sequence[str],
        add_special_tokens: bool = True,
        *,
        truncation: bool | None = None,
        max_length: int | None = None,
    ) -> list[list[int]]:
        """Return the ids of each text, cut to `max_length` with the frame, where `truncation` or a length is given."""
        limit = self._limit(truncation, max_length)
        cleaned = [well_formed(text) for text in texts]
        encodings = self._library.encode_batch_fast(cleaned, add_special_tokens=add_special_tokens and limit is None)
        if limit is None:
            return [encoding.ids for encoding in encodings]
        return [self._cut(encoding, limit, add_special_tokens) for encoding in encodings]

    def decode(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of `ids`, special tokens written out unless they are to be skipped."""
        listed = [ids] if isinstance(ids, int) else list(ids)
        return self._library.decode(listed, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, batch_ids: Sequence[Sequence[int]], skip_special_tokens: bool = False) -> list[str]:
        """Return the text of each row."""
        return [self.decode(ids, skip_special_tokens) for ids in batch_ids]

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int | None]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int | None] | None:
        """Return the id of one token or of each; a string that is no token has the unknown token's, or None."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        id = self._id(tokens)
        return self._id(self._config.tokens.get("unk_token")) if id is None else id

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str | None: ...
    @overload
    def convert_ids_to_tokens(self, ids: Sequence[int], skip_special_tokens: bool = False) -> list[str | None]: ...
    def convert_ids_to_tokens(
        self, ids: int | Sequence[int], skip_special_tokens: bool = False
    ) -> str | list[str | None] | None:
        """Return the token of one id or of each, as the vocabulary spells it; None for an id without one."""
        if isinstance(ids, int):
            return self._library.id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._library.id_to_token(id) for id in ids if id not in skipped]

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **variables: object,
    ) -> str | list[int]:
        """Return the prompt's ids, or its text. `variables` are the template's own, such as `tools`."""
        text = self._template.render_text(messages, add_generation_prompt=add_generation_prompt, variables=variables)
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def pad(
        self,
        batch_ids: Sequence[Sequence[int]],
        padding_side: str | None = None,
        *,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> Batch:
        """Return the rows made equally long, and 1 for each token that was there and 0 for each that was not.

        `max_length` is the length to pad to, else the longest row's; a longer row stays as it is.
        """
        side = self.padding_side if padding_side is None else padding_side
        if side not in SIDES:
            raise ConfigError(f"padding_side is one of {SIDES}, not {side!r}")
        if (pad := self.pad_token_id) is None:
            raise ConfigError("this tokenizer has no padding token; set pad_token, for instance to eos_token")
        longest = max(map(len, batch_ids), default=0) if max_length is None else max_length
        length = -(-longest // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)
        ids = [_filled(list(row), [pad] * (length - len(row)), side) for row in batch_ids]
        return ids, [_filled([1] * len(row), [0] * (length - len(row)), side) for row in batch_ids]

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._library.token_to_id(token)

    def _limit(self, truncation: bool | None, max_length: int | None) -> int | None:
        """Return how many ids a text may have; None for as many as it takes. A length alone asks for truncation."""
        if truncation is None:
            truncation = max_length is not None
        limit = self.model_max_length if max_length is None else max_length
        return limit if truncation and limit < UNLIMITED else None

    def _cut(self, encoding: tokenizers.Encoding, limit: int, add_special_tokens: bool) -> list[int]:
        frame = self._library.num_special_tokens_to_add(is_pair=False) if add_special_tokens else 0
        if limit < frame:
            raise InvalidRequest(f"max_length is at least the {frame} tokens put round a text", param="max_length")
        encoding.truncate(limit - frame, direction=self.truncation_side)
        return self._library.post_process(encoding, None, add_special_tokens).ids


def _filled(row: list[int], padding: list[int], side: str) -> list[int]:
    return padding + row if side == "left" else row + padding
