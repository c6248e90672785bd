"""Chat templates of our own, for checkpoints of a known format that come without one.

Knows the files in `templates` and which control tokens each format needs. Refuses to replace a template that a
checkpoint has.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Literal, TypeAlias

OwnTemplate: TypeAlias = Literal["glm4", "glm4-0414", "glm45", "glm47"]
"""Formats: GLM-4-9B-Chat's, GLM-4-0414's, that of GLM-4.5 and 4.6, that of GLM-4.7."""

_GLM4 = frozenset({"[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"})
_GLM45 = _GLM4 | {"<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "<arg_value>"}


def own_template(name: OwnTemplate) -> str:
    """The source of a template."""
    return (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def fitting_template(specials: Collection[str], *, model_type: str, tool_parser: str = "auto") -> OwnTemplate | None:
    """Which format a checkpoint without a template has, by its control tokens; None if it is none we know.

    The tokens of GLM-4.5 to 4.7 are the same, so 4.7 must be named by `tool_parser`.
    """
    if _GLM45.issubset(specials):
        return "glm47" if tool_parser == "glm47" else "glm45"
    if _GLM4.issubset(specials):
        return "glm4-0414" if model_type == "glm4" else "glm4"
    return None
