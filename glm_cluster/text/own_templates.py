"""Chat templates of our own, for checkpoints of a known format that come without one.

Knows the files in `templates` and which control tokens each format needs. Refuses to replace a template that a
checkpoint has.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

from glm_cluster.records import ToolParser
from glm_cluster.text.chat import ChatTemplate
from glm_cluster.text.tokenizer import Tokenizer
from glm_cluster.text.tokenizer_config import TokenizerConfig

OwnTemplate: TypeAlias = Literal["glm4", "glm4-0414", "glm45", "glm47"]
"""Formats: GLM-4-9B-Chat's, GLM-4-0414's, that of GLM-4.5 and 4.6, that of GLM-4.7."""

_GLM4 = frozenset({"[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"})
_GLM45 = _GLM4 | {"<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "<arg_value>"}


def own_template(name: OwnTemplate) -> str:
    """The source of a template."""
    return (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def fitting_template(
    specials: Collection[str], *, model_type: str, tool_parser: ToolParser = "auto"
) -> OwnTemplate | None:
    """Which format a checkpoint without a template has, by its control tokens; None if it is none we know.

    The tokens of GLM-4.5 to 4.7 are the same, so 4.7 must be named by `tool_parser`.
    """
    if _GLM45.issubset(specials):
        return "glm47" if tool_parser == "glm47" else "glm45"
    if _GLM4.issubset(specials):
        return "glm4-0414" if model_type == "glm4" else "glm4"
    return None


def served_template(
    path: Path, tokenizer: Tokenizer, *, model_type: str, tool_parser: ToolParser = "auto"
) -> ChatTemplate:
    """The template of a checkpoint; ours if it has none and its format is known; else one that refuses all."""
    config = TokenizerConfig.from_directory(path)
    fitting = fitting_template(tokenizer.special_ids, model_type=model_type, tool_parser=tool_parser)
    if config.chat_template is None and fitting is not None:
        config = replace(config, chat_template=own_template(fitting))
    return ChatTemplate.from_config(config, tokenizer.special_ids, path)
