"""How much a model is to reason: what clients say of it, and how a chat template is told.

Knows the names that OpenAI, Z.ai and the templates of GLM models have for it. Refuses to know how reasoning is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from glm_cluster.api.schema import Schema
from glm_cluster.errors import InvalidRequest
from glm_cluster.text.chat import ChatTemplate

Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""OpenAI's: `none` is no reasoning at all, and `medium` what a model does that is told nothing."""

_SWITCH, _EFFORT = "enable_thinking", "reasoning_effort"  # variables of templates
SAID_BY_EFFORT: Final = frozenset({_SWITCH, _EFFORT})


class Thinking(Schema):
    """Z.ai's way to say whether a model is to reason."""

    type: Literal["enabled", "disabled"]
    clear_thinking: bool | None = None  # leave the reasoning of earlier turns out

    @property
    def variables(self) -> dict[str, bool]:
        """What a chat template is told."""
        clears = {} if self.clear_thinking is None else {"clear_thinking": self.clear_thinking}
        return {_SWITCH: self.type == "enabled", **clears}


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
    if effort is not None and template.asks_for(_EFFORT):
        given[_EFFORT] = effort
    elif effort == "none":
        closes = not has_switch
    elif effort not in (None, "medium"):
        raise InvalidRequest(
            "reasoning_effort: this model reasons as it does, or not at all with 'none'; send that, or leave it out",
            param="reasoning_effort",
        )
    return Told(given, closes)
