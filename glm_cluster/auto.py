"""The names that Transformers' examples import, for GLM: change the import line and the example runs.

    from glm_cluster.auto import AutoModelForCausalLM, AutoTokenizer

What the names mean here: a checkpoint's own config.json picks nothing but a GLM class; `device_map="auto"` puts the
whole model on the GPU if there is one with room, else on the CPU; `trust_remote_code=True` is accepted, said once, and
no code of a checkpoint is ever run: THUDM's own `chatglm` files are read by code of ours. A tokenizer gives torch
tensors or lists.
`generate` is Transformers' to the id, and so may give the ids of the vocabulary's last rows, which stand for no token
and are no text; the served engine never samples those.
Knows model and text. Knows no engine, no Ray and no wire.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, Unpack

from glm_cluster.errors import CheckpointError, ConfigError, InvalidRequest
from glm_cluster.model.checkpoints.hub import HubOptions, resolve
from glm_cluster.model.config import GlmConfig
from glm_cluster.text.chat import ChatTemplate
from glm_cluster.text.page_tokenizer import PageTokenizer
from glm_cluster.text.tokenizer_config import UNLIMITED

if TYPE_CHECKING:
    from glm_cluster.model.glm import GlmForCausalLM, GlmModel
    from glm_cluster.model.heads import GlmForSequenceClassification, GlmForTokenClassification

Texts: TypeAlias = str | Sequence[str]
Messages: TypeAlias = Sequence[Mapping[str, object]]
Padding: TypeAlias = bool | Literal["longest", "max_length", "do_not_pad"]
Side: TypeAlias = Literal["left", "right"]


_UNIMPLEMENTED = (
    "continue_final_message",
    "return_assistant_tokens_mask",
    "sanitize_control_tokens",
    "tokenizer_kwargs",
)


class AutoConfig:
    """`AutoConfig.from_pretrained`."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_directory: str | Path,
        *,
        trust_remote_code: bool = False,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **changes: Any,
    ) -> GlmConfig:
        """Read config.json; `changes` are keys of it (`num_labels=3`)."""
        from glm_cluster.model.pretrained import changed

        _note(trust_remote_code)
        directory = resolve(
            name_or_directory, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
        )
        return changed(GlmConfig.from_pretrained(directory), changes)


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
        padding_side: Side | None = None,
        trust_remote_code: bool = False,
        use_fast: bool = True,
        **hub: Unpack[HubOptions],
    ) -> "GlmTokenizer":
        """Read tokenizer.json, or THUDM's tokenizer.model, and the chat template."""
        if unknown := hub.keys() - HubOptions.__annotations__.keys():
            raise TypeError(f"from_pretrained does not know {', '.join(sorted(unknown))}")
        if not use_fast:
            raise ConfigError("there is one tokenizer, the fast one; leave use_fast=False out")
        _note(trust_remote_code)
        tokenizer = GlmTokenizer.from_directory(resolve(name_or_directory, **hub))
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
        padding: Padding = False,
        truncation: bool | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        return_tensors: Literal["pt"] | None = None,
    ) -> BatchEncoding:
        """Encode one text or several. Tensors [B, T] need rows of one length: pad, or give one text."""
        single = isinstance(text, str)
        texts: Sequence[str] = [text] if isinstance(text, str) else text
        limit = max_length if truncation or padding != "max_length" else None
        rows = self.encode_batch(texts, add_special_tokens, truncation=truncation, max_length=limit)
        rows, masks = self._padded(rows, padding, max_length, pad_to_multiple_of, padding_side)
        flat = single and return_tensors is None
        columns = {"input_ids": rows[0] if flat else rows, "attention_mask": masks[0] if flat else masks}
        return _encoding(columns, return_tensors)

    def pad(  # type: ignore[override]  # HF's has more forms
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | Sequence[Sequence[int]],
        padding: Padding | Side = True,
        *,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Literal["pt"] | None = None,
    ) -> Any:
        """Make the rows of an encoding, or a list of encodings, equally long: an encoding, as Transformers gives it.

        Lists of ids without a name stay what they were, a pair of ids and mask; `padding` may be their side.
        """
        if not _are_columns(encoded_inputs):
            side = padding_side if isinstance(padding, bool) else str(padding)
            rows: Any = encoded_inputs
            return super().pad(rows, side, max_length=max_length, pad_to_multiple_of=pad_to_multiple_of)
        columns, had_tensors = _columns(encoded_inputs)
        flat = not columns["input_ids"] or isinstance(columns["input_ids"][0], int)
        if flat:
            columns = {name: [column] for name, column in columns.items()}
        given = columns.get("attention_mask")
        columns["input_ids"], masks = self._padded(
            columns["input_ids"], padding, max_length, pad_to_multiple_of, padding_side
        )
        if return_attention_mask is not False:
            columns["attention_mask"] = masks if given is None else list(map(_refilled, masks, given))
        if flat:
            columns = {name: column[0] for name, column in columns.items()}
        return _encoding(columns, return_tensors or ("pt" if had_tensors else None))

    def _padded(
        self,
        rows: list[list[int]],
        padding: Padding | Side,
        max_length: int | None,
        pad_to_multiple_of: int | None,
        padding_side: Side | None,
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Rows and their masks by HF's strategy: to the longest, to a length where there is one, or as they are."""
        length = (max_length or self.model_max_length) if padding == "max_length" else None
        if padding in (False, "do_not_pad") or (length is not None and length >= UNLIMITED):
            return rows, [[1] * len(row) for row in rows]
        if padding not in (True, "longest", "max_length"):
            raise InvalidRequest(f"padding is a flag, 'longest' or 'max_length', not {padding!r}", param="padding")
        return super().pad(rows, padding_side, max_length=length, pad_to_multiple_of=pad_to_multiple_of)

    def apply_chat_template(  # type: ignore[override]  # HF's has more forms
        self,
        conversation: Messages | Sequence[Messages],
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        padding: Padding = False,
        padding_side: Side | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: Literal["pt"] | None = None,
        return_dict: bool = True,
        **variables: Any,
    ) -> Any:
        """The prompt of a conversation, or of each of a list of them: text, an encoding, or (no `return_dict`) ids.

        `chat_template` is a template's text, used instead of the checkpoint's. `variables` are the template's own.
        """
        for name in _UNIMPLEMENTED:
            if variables.pop(name, None):
                raise InvalidRequest(f"{name} is not implemented by this tokenizer; leave it out", param=name)
        if len(conversation) == 0:
            raise InvalidRequest("an empty conversation makes no prompt; give a message", param="conversation")
        if not all(isinstance(document, Mapping) for document in documents or ()):
            raise InvalidRequest(
                "documents are mappings with a title and a text; give a list of those", param="documents"
            )
        template = self._template if chat_template is None else self._compiled(chat_template)
        batched = not isinstance(conversation[0], Mapping)
        conversations: Any = conversation if batched else [conversation]
        given = {**variables, "tools": tools, "documents": documents}
        texts = [
            template.render_text(each, add_generation_prompt=add_generation_prompt, variables=given)
            for each in conversations
        ]
        if not tokenize:
            return texts if batched else texts[0]
        encoding = self(
            texts if batched else texts[0],
            add_special_tokens=False,
            padding=padding,
            padding_side=padding_side,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
        )
        return encoding if return_dict else encoding.input_ids

    def _compiled(self, source: str) -> ChatTemplate:
        try:
            return ChatTemplate.from_config(replace(self._config, chat_template=source), {}, Path("chat_template"))
        except CheckpointError as error:
            raise InvalidRequest(f"{error.message}; give a Jinja template's text", param="chat_template") from error

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of a row of ids, a tensor or a list."""
        return super().decode(_listed(ids), skip_special_tokens)

    def batch_decode(self, batch_ids: Any, skip_special_tokens: bool = False) -> list[str]:
        """The text of each row."""
        return [self.decode(row, skip_special_tokens) for row in batch_ids]


def _encoding(columns: Mapping[str, Any], return_tensors: str | None) -> BatchEncoding:
    if return_tensors is None:
        return BatchEncoding(columns)
    if return_tensors != "pt":
        raise InvalidRequest(f"return_tensors is 'pt' or nothing, not {return_tensors!r}", param="return_tensors")
    for name, column in columns.items():
        if len({len(row) for row in column if isinstance(row, list)}) > 1:
            raise InvalidRequest(f"rows of unequal length ({name}) make no tensor; pass padding=True", param="padding")
    import torch

    return BatchEncoding({name: torch.tensor(column) for name, column in columns.items()})


def _are_columns(inputs: object) -> bool:
    return isinstance(inputs, Mapping) or (
        isinstance(inputs, Sequence) and bool(inputs) and isinstance(inputs[0], Mapping)
    )


def _columns(inputs: Any) -> tuple[dict[str, list[Any]], bool]:
    """An encoding, or several as one, in lists; and whether its ids were tensors."""
    columns = inputs if isinstance(inputs, Mapping) else {name: [each[name] for each in inputs] for name in inputs[0]}
    if "input_ids" not in columns:
        raise InvalidRequest(f"pad takes encodings with input_ids, not with {sorted(columns)}", param="input_ids")
    ids = columns["input_ids"]
    had_tensors = hasattr(ids, "tolist") or any(hasattr(row, "tolist") for row in ids)
    return {name: _all_listed(column) for name, column in columns.items()}, had_tensors


def _all_listed(column: Any) -> list[Any]:
    listed = _listed(column)
    return [_listed(each) for each in listed] if isinstance(listed, list | tuple) else listed


def _refilled(padded: list[int], given: Sequence[int]) -> list[int]:
    """The mask of a padded row, with what the mask said of it before in the place of its ones."""
    values = iter(given)
    return [next(values) if there else 0 for there in padded]


def _listed(ids: Any) -> Any:
    return ids.tolist() if hasattr(ids, "tolist") else ids


def _note(trust_remote_code: bool) -> None:
    if not trust_remote_code:
        return
    from glm_cluster.model.pretrained import note_trust

    note_trust(trust_remote_code)
