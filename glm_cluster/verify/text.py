"""A checkpoint's tokenizer and template as whoever reads them: the common shape of ours and transformers'."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from glm_cluster.errors import InvalidRequest
from glm_cluster.text.chat import ChatTemplate
from glm_cluster.text.page_tokenizer import PageTokenizer
from glm_cluster.text.tiktoken import FILE as RANKS_FILE
from glm_cluster.text.tokenizer import Plain, Text, Tokenizer
from glm_cluster.text.tokenizer_config import TokenizerConfig
from glm_cluster.verify.corpus import Conversation

Tools = Sequence[Mapping[str, Any]] | None


class TextReader(Protocol):
    """Text to ids and back, and conversations to text, with special tokens recognised in both."""

    def tokens(self) -> list[str | None]:
        """Every token by its id."""
        ...

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str: ...
    def render(self, conversation: Conversation, tools: Tools) -> str | None:
        """The prompt; None where the template refuses the conversation."""
        ...


class PageText:
    """Our tokenizer for Transformers' users."""

    def __init__(self, tokenizer: PageTokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, directory: Path) -> Self | None:
        """Read it; None where the directory has no tokenizer."""
        return cls(PageTokenizer.from_directory(directory)) if has_tokenizer(directory) else None

    def tokens(self) -> list[str | None]:
        """Every token by its id."""
        return self._tokenizer.convert_ids_to_tokens(range(len(self._tokenizer)))

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """The ids, `<|user|>` in a text being the control token."""
        return self._tokenizer.encode(text, add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of ids."""
        return self._tokenizer.decode(ids, skip_special_tokens)

    def render(self, conversation: Conversation, tools: Tools) -> str | None:
        """The prompt of a conversation."""
        try:
            text = self._tokenizer.apply_chat_template(conversation, False, True, tools=tools)
        except InvalidRequest:
            return None
        assert isinstance(text, str), "not asked to tokenise"
        return text


class ServedText:
    """What a cluster serves with: a tokenizer that makes no control token out of text, and the template."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self.tokenizer = tokenizer
        self.template = template

    @classmethod
    def open(cls, directory: Path) -> Self | None:
        """Read both; None where the directory has no tokenizer."""
        if not has_tokenizer(directory):
            return None
        tokenizer = Tokenizer.from_directory(directory)
        has_template = TokenizerConfig.from_directory(directory).chat_template is not None
        return cls(tokenizer, ChatTemplate.from_directory(directory, tokenizer) if has_template else None)

    def encode(self, text: Text) -> tuple[int, ...]:
        """The ids of one text."""
        return self.tokenizer.encode_batch([text])[0]

    def prompt(self, text: str) -> tuple[int, ...]:
        """The ids that a user's text becomes: by the template where it takes one, else in the tokenizer's frame."""
        if (rendered := self.render(({"role": "user", "content": text},), None)) is not None:
            return rendered
        before, after = self.tokenizer.frame
        return (*before, *self.encode((Plain(text),)), *after)

    def render(self, conversation: Conversation, tools: Tools) -> tuple[int, ...] | None:
        """The prompt of a conversation as ids; None where the template refuses it, or where there is none."""
        if self.template is None:
            return None
        try:
            return self.encode(self.template.render(conversation, variables={"tools": tools}))
        except InvalidRequest:
            return None


def has_tokenizer(directory: Path) -> bool:
    """Whether there is a vocabulary file of a kind that is read."""
    return (directory / "tokenizer.json").exists() or (directory / RANKS_FILE).exists()
