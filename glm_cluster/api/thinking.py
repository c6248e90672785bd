"""How much a model is to reason: what clients say of it, and how a chat template is told.

Knows the names that OpenAI, Z.ai and the templates of GLM models have for it. Refuses to know how reasoning is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from glm_cluster.api.fields import Variables
from glm_cluster.api.schema import Schema
from glm_cluster.errors import InvalidRequest
from glm_cluster.text.chat import ChatTemplate

Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""OpenAI's: `none` is no reasoning at all, and `medium` what a model does that is told nothing."""

_SWITCH, _EFFORT = "enable_thinking", "reasoning_effort"  # variables of templates
_SAID_BY_EFFORT: Final = frozenset({_SWITCH, _EFFORT})


class Thinking(Schema):
    """Z.ai's way to say whether a model is to reason."""

    type: Literal["enabled", "disabled"]
    clear_thinking: bool | None = None  # leave the reasoning of earlier turns out

    @property
    def variables(self) -> dict[str, bool]:
        """What a chat template is told."""
        clears = {} if self.clear_thinking is None else {"clear_thinking": self.clear_thinking}
        return {_SWITCH: self.type == "enabled", **clears}


class TemplateFields(Schema):
    """The fields of a request that tell a chat template of more than the conversation."""

    chat_template_kwargs: Variables = Field(default={})
    reasoning_effort: Effort | None = None
    thinking: Thinking | None = None

    @property
    def variables(self) -> dict[str, Any]:
        """What the chat template is told beside the conversation."""
        return {**self.chat_template_kwargs, **(self.thinking.variables if self.thinking else {})}

    @model_validator(mode="after")
    def _says_it_once(self) -> Self:
        if self.reasoning_effort and (twice := _SAID_BY_EFFORT & self.variables.keys()):
            raise ValueError(f"reasoning_effort excludes {min(twice)} for the chat template; give one of them")
        if self.thinking and (given := self.thinking.variables.keys() & self.chat_template_kwargs.keys()):
            raise ValueError(f"thinking excludes {min(given)} among chat_template_kwargs; give one of them")
        return self


@dataclass(frozen=True, slots=True)
class Told:
    """A template's variables. `closes`: they cannot say that the model is not to reason, so the prompt's end has to."""

    variables: Mapping[str, Any]
    closes: bool


def told(template: ChatTemplate, variables: Mapping[str, Any], effort: Effort | None, *, thinks: bool) -> Told:
    """What to tell a template of a model that `thinks` or does not; InvalidRequest if it would change nothing.

    Every model can be asked not to reason, and one that does to do so, whether or not its template has a switch.
    """
    given, closes = dict(variables), False
    has_switch = template.asks_for(_SWITCH)
    if not has_switch and isinstance(wish := given.get(_SWITCH), bool) and (thinks or not wish):
        del given[_SWITCH]
        closes = not wish
    template.check_variables(given)
    if effort == "none" and has_switch:
        given[_SWITCH] = False
    closes = closes or (effort == "none" and not has_switch)
    if effort is not None and template.asks_for(_EFFORT):
        given[_EFFORT] = effort
    elif effort not in (None, "none", "medium"):
        raise InvalidRequest(
            "reasoning_effort: this model reasons as it does, or not at all with 'none'; send that, or leave it out",
            param="reasoning_effort",
        )
    return Told(given, closes)
