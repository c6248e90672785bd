"""A call that must come: what it takes to make a model call a tool, whatever it would rather say.

Knows requests and grammars. Refuses to know how a grammar is followed.
"""

from collections.abc import Collection

from glm_cluster.api.openai import ChatCompletionRequest
from glm_cluster.errors import InvalidRequest
from glm_cluster.records import Grammar
from glm_cluster.text.tools.choice import forced_calls
from glm_cluster.text.tools.dialect import Dialect


def demanded_calls(request: ChatCompletionRequest, dialect: Dialect, specials: Collection[str]) -> Grammar | None:
    """The grammar of the calls that the request demands; None if it leaves the model the choice."""
    if not (tools := request.demanded):
        return None
    if dialect.family is None:
        raise InvalidRequest(
            "tool_choice: calls of this model are not read here (tool_parser: none), so none can be demanded; "
            'send "none", or serve it with another tool_parser',
            param="tool_choice",
        )
    known = dialect.understood(tools)
    return forced_calls(known, dialect.family, specials, parallel=request.parallel_tool_calls)
