"""What forward passes return: fields by name, by key, or by place among those that are there.

Source: HF `ModelOutput` and its subclasses of the same names (transformers 5.23).
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from glm_cluster.model.cache import Cache


@dataclass(slots=True)
class ModelOutput:
    """Fields that are None count as absent: they have no key, no place, and are not in the tuple."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are there, in order."""
        return tuple(self.values())

    def keys(self) -> list[str]:
        """Names of the fields that are there."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]

    def values(self) -> list[Any]:
        """The fields that are there."""
        return [getattr(self, name) for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        """Both."""
        return list(zip(self.keys(), self.values(), strict=True))

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            return dict(self.items())[key]
        return self.to_tuple()[key]

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


@dataclass(slots=True)
class BaseModelOutputWithPast(ModelOutput):
    """`last_hidden_state` [B, T, H] after the final norm; `hidden_states` and `attentions` when asked for."""

    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(slots=True)
class CausalLMOutputWithPast(ModelOutput):
    """`logits` [B, kept, V] in the model's dtype."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(slots=True)
class SequenceClassifierOutputWithPast(ModelOutput):
    """`logits` [B, num_labels] of each row's last token that is no padding."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(slots=True)
class TokenClassifierOutput(ModelOutput):
    """`logits` [B, T, num_labels]."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
