"""Hugging Face's transformers as the oracle. The only module of this package that imports it, and then only when used.

Runs no code of a checkpoint: what transformers could read only that way is given to its own classes as we read it, and
a note says so.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from glm_cluster.model.checkpoints.checkpoint import Checkpoint
from glm_cluster.model.config import CONFIG_FILE, GlmConfig, read_json
from glm_cluster.model.sharding import Sharding
from glm_cluster.text.tokenizer import library_tokenizer
from glm_cluster.text.tokenizer_config import TokenizerConfig
from glm_cluster.text.tokenizer_file import TokenizerFile
from glm_cluster.verify.corpus import Conversation
from glm_cluster.verify.oracle import Answer, Questions, answers_of
from glm_cluster.verify.text import TextReader, Tools, has_tokenizer

_MAPPED = (
    "transformers reads chatglm only by running the checkpoint's code: its GlmForCausalLM was filled with the tensors "
    "as we map them"
)
_OWN_VOCABULARY = (
    "transformers reads this tokenizer only by running the checkpoint's code: its classes were given the vocabulary as "
    "we read it"
)


def _transformers() -> Any:
    """The library, imported the first time it is asked for. Its functions are typed in parts only."""
    import transformers

    return transformers


class TransformersOracle:
    """transformers on this checkpoint, in this process, on the CPU."""

    is_self = False

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._is_chatglm = read_json(directory / CONFIG_FILE).get("model_type") == "chatglm"
        self._needs_code = has_tokenizer(directory) and _needs_code(directory)
        self.name = f"transformers {_transformers().__version__}"
        self.notes = tuple(
            note for note, applies in ((_MAPPED, self._is_chatglm), (_OWN_VOCABULARY, self._needs_code)) if applies
        )

    @classmethod
    def open(cls, directory: Path) -> Self | None:
        """The oracle for a checkpoint; None where transformers is not installed."""
        try:
            _transformers()
        except ImportError:
            return None
        return cls(directory)

    def config(self) -> Mapping[str, object] | None:
        """The keys of transformers' own config class; None for chatglm, of which it has none."""
        if self._is_chatglm:
            return None
        keys: dict[str, object] = (
            _transformers().AutoConfig.from_pretrained(self._directory, trust_remote_code=False).to_dict()
        )
        return keys

    def text(self) -> TextReader | None:
        """AutoTokenizer; for a tokenizer that comes with code, the class it would be without."""
        if not has_tokenizer(self._directory):
            return None
        if self._needs_code:
            return _HfText(_without_code(self._directory))
        return _HfText(_transformers().AutoTokenizer.from_pretrained(self._directory, trust_remote_code=False))

    def answers(self, questions: Questions) -> list[Answer]:
        """Load, answer, forget."""
        with _quietly():
            model = self._load(questions.dtype)
            model.generation_config = _transformers().GenerationConfig(
                eos_token_id=list(questions.eos_ids) or None, pad_token_id=questions.pad_id
            )
            answers = answers_of(model, questions)
        del model
        gc.collect()  # its modules refer to each other
        return answers

    def _load(self, dtype: str) -> Any:
        import torch

        to = getattr(torch, dtype)
        if self._is_chatglm:
            return _mapped(self._directory, to)
        kind = _transformers().AutoModelForCausalLM
        return kind.from_pretrained(self._directory, dtype=to, trust_remote_code=False).eval()


class _HfText:
    """A tokenizer of transformers'."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def tokens(self) -> list[str | None]:
        tokens: list[str | None] = self._tokenizer.convert_ids_to_tokens(range(len(self._tokenizer)))
        return tokens

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def render(self, conversation: Conversation, tools: Tools) -> str | None:
        from jinja2 import TemplateError

        try:
            text: str = self._tokenizer.apply_chat_template(
                [dict(message) for message in conversation],
                tools=None if tools is None else [dict(tool) for tool in tools],
                tokenize=False,
                add_generation_prompt=True,
            )
        except (TemplateError, TypeError, ValueError, LookupError):
            return None
        return text


def _needs_code(directory: Path) -> bool:
    """Whether the tokenizer is a class of the checkpoint's own, or a file that transformers reads with one only."""
    path = directory / "tokenizer_config.json"
    return not (directory / "tokenizer.json").exists() or (path.is_file() and "auto_map" in read_json(path))


def _without_code(directory: Path) -> Any:
    config = TokenizerConfig.from_directory(directory)
    return _transformers().PreTrainedTokenizerFast(
        tokenizer_object=library_tokenizer(TokenizerFile.from_directory(directory).content),
        chat_template=config.chat_template,
        extra_special_tokens=list(config.extra_tokens),
        **config.tokens,
    )


def _mapped(directory: Path, dtype: Any) -> Any:
    """transformers' GlmForCausalLM over the tensors of a chatglm checkpoint."""
    import torch
    from transformers.models.glm.modeling_glm import GlmRotaryEmbedding

    config = GlmConfig.from_pretrained(directory)
    hf_config = _transformers().GlmConfig(**config.to_dict())
    with torch.device("meta"):
        model = _transformers().GlmForCausalLM(hf_config)
    tensors = Checkpoint.open(directory, config).read(Sharding(config, 0, 1).tensors())
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors}, strict=False, assign=True)
    model.model.rotary_emb = GlmRotaryEmbedding(hf_config)  # its frequencies are in no file
    model.tie_weights()
    return model.eval()


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' progress bars, which would stand in the middle of the table."""
    logging = _transformers().utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
