"""The names that Transformers' examples import, for GLM: change the import line and the example runs.

    from glm_cluster.auto import AutoModelForCausalLM, AutoTokenizer

What the names mean here: a checkpoint's own config.json picks nothing but a GLM class; `device_map="auto"` puts the
whole model on the GPU if there is one with room, else on the CPU; `trust_remote_code=True` is accepted, said once, and
no code of a checkpoint is ever run: THUDM's own `chatglm` files are read by code of ours. A tokenizer gives torch
tensors or lists.
Knows model and text. Knows no engine, no Ray and no wire.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from glm_cluster.errors import InvalidRequest
from glm_cluster.model.checkpoints.hub import resolve
from glm_cluster.model.config import GlmConfig
from glm_cluster.text.page_tokenizer import PageTokenizer

if TYPE_CHECKING:
    from glm_cluster.model.glm import GlmForCausalLM, GlmModel
    from glm_cluster.model.heads import GlmForSequenceClassification, GlmForTokenClassification

Texts: TypeAlias = str | Sequence[str]
Messages: TypeAlias = Sequence[Mapping[str, object]]


class AutoConfig:
    """`AutoConfig.from_pretrained`."""

    @classmethod
    def from_pretrained(cls, name_or_directory: str | Path, *, trust_remote_code: bool = False) -> GlmConfig:
        """Read config.json."""
        _note(trust_remote_code)
        return GlmConfig.from_pretrained(name_or_directory)


class AutoModel:
    """`AutoModel.from_pretrained`; the options are those of `GlmModel.from_pretrained`."""

    @classmethod
    def from_pretrained(cls, name_or_directory: str | Path, **options: Any) -> "GlmModel":
        """Load a decoder without a head."""
        from glm_cluster.model.glm import GlmModel

        return GlmModel.from_pretrained(name_or_directory, **options)


class AutoModelForCausalLM:
    """`AutoModelForCausalLM.from_pretrained`; the options are those of `GlmForCausalLM.from_pretrained`."""

    @classmethod
    def from_pretrained(cls, name_or_directory: str | Path, **options: Any) -> "GlmForCausalLM":
        """Load a language model."""
        from glm_cluster.model.glm import GlmForCausalLM

        return GlmForCausalLM.from_pretrained(name_or_directory, **options)


class AutoModelForSequenceClassification:
    """`AutoModelForSequenceClassification.from_pretrained`; options as above, `num_labels` among them."""

    @classmethod
    def from_pretrained(cls, name_or_directory: str | Path, **options: Any) -> "GlmForSequenceClassification":
        """Load a sequence classifier."""
        from glm_cluster.model.heads import GlmForSequenceClassification

        return GlmForSequenceClassification.from_pretrained(name_or_directory, **options)


class AutoModelForTokenClassification:
    """`AutoModelForTokenClassification.from_pretrained`; options as above, `num_labels` among them."""

    @classmethod
    def from_pretrained(cls, name_or_directory: str | Path, **options: Any) -> "GlmForTokenClassification":
        """Load a token classifier."""
        from glm_cluster.model.heads import GlmForTokenClassification

        return GlmForTokenClassification.from_pretrained(name_or_directory, **options)


class AutoTokenizer:
    """`AutoTokenizer.from_pretrained`."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_directory: str | Path,
        *,
        padding_side: Literal["left", "right"] | None = None,
        trust_remote_code: bool = False,
    ) -> "GlmTokenizer":
        """Read tokenizer.json, or THUDM's tokenizer.model, and the chat template."""
        _note(trust_remote_code)
        tokenizer = GlmTokenizer.from_directory(resolve(name_or_directory))
        if padding_side is not None:
            tokenizer.padding_side = padding_side
        return tokenizer


class BatchEncoding(Mapping[str, Any]):
    """`input_ids` and `attention_mask`, by key or by attribute; `model(**encoding)` works."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"an encoding has {', '.join(self._values)}, no {name}")
        return self._values[name]

    def to(self, device: Any) -> Self:
        """The same on another device."""
        return type(self)({key: value.to(device) for key, value in self._values.items()})


class GlmTokenizer(PageTokenizer):
    """A `PageTokenizer` to be called: texts in, ids and attention mask out, as lists or torch tensors."""

    @classmethod
    def from_directory(cls, path: Path) -> "GlmTokenizer":
        """As `PageTokenizer`."""
        tokenizer = super().from_directory(path)
        assert isinstance(tokenizer, cls)
        return tokenizer

    def __call__(
        self,
        text: Texts,
        *,
        add_special_tokens: bool = True,
        padding: bool | Literal["longest", "max_length", "do_not_pad"] = False,
        truncation: bool | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: Literal["left", "right"] | None = None,
        return_tensors: Literal["pt"] | None = None,
    ) -> BatchEncoding:
        """Encode one text or several. Tensors [B, T] need rows of one length: pad, or give one text."""
        single = isinstance(text, str)
        texts: Sequence[str] = [text] if isinstance(text, str) else text
        limit = max_length if truncation or padding != "max_length" else None
        rows = self.encode_batch(texts, add_special_tokens, truncation=truncation, max_length=limit)
        masks = [[1] * len(row) for row in rows]
        if padding not in (False, "do_not_pad"):
            length = (max_length or self.model_max_length) if padding == "max_length" else None
            rows, masks = self.pad(rows, padding_side, max_length=length, pad_to_multiple_of=pad_to_multiple_of)
        return _encoding(rows, masks, single and return_tensors is None, return_tensors)

    def apply_chat_template(  # type: ignore[override]  # HF's has more forms
        self,
        conversation: Messages,
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_tensors: Literal["pt"] | None = None,
        return_dict: bool = True,
        **variables: Any,
    ) -> Any:
        """The prompt as text, or its ids: an encoding, or with `return_dict=False` the ids alone."""
        given = {**variables, **({} if tools is None else {"tools": tools})}
        text = super().apply_chat_template(conversation, False, add_generation_prompt, **given)
        if not tokenize:
            return text
        encoding = self(str(text), add_special_tokens=False, return_tensors=return_tensors)
        return encoding if return_dict else encoding.input_ids

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of a row of ids, a tensor or a list."""
        return super().decode(_listed(ids), skip_special_tokens)

    def batch_decode(self, batch_ids: Any, skip_special_tokens: bool = False) -> list[str]:
        """The text of each row."""
        return [self.decode(row, skip_special_tokens) for row in batch_ids]


def _encoding(rows: list[list[int]], masks: list[list[int]], single: bool, return_tensors: str | None) -> BatchEncoding:
    if return_tensors is None:
        return BatchEncoding(
            {"input_ids": rows[0] if single else rows, "attention_mask": masks[0] if single else masks}
        )
    if return_tensors != "pt":
        raise InvalidRequest(f"return_tensors is 'pt' or nothing, not {return_tensors!r}", param="return_tensors")
    if len({len(row) for row in rows}) > 1:
        raise InvalidRequest("texts of unequal length make no tensor; pass padding=True", param="padding")
    import torch

    return BatchEncoding({"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)})


def _listed(ids: Any) -> Any:
    return ids.tolist() if hasattr(ids, "tolist") else ids


def _note(trust_remote_code: bool) -> None:
    from glm_cluster.model.pretrained import note_trust

    note_trust(trust_remote_code)
