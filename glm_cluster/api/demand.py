"""Calls that must come, or must keep to their schemas, whatever a model would rather say.

Knows requests and grammars. Refuses to know how a grammar is followed.
"""

from collections.abc import Collection

from glm_cluster.api.openai import ChatCompletionRequest
from glm_cluster.errors import InvalidRequest
from glm_cluster.records import Grammar
from glm_cluster.text.tools.choice import forced_calls, strict_calls
from glm_cluster.text.tools.dialect import Dialect


def held_calls(request: ChatCompletionRequest, dialect: Dialect, specials: Collection[str]) -> Grammar | None:
    """The grammar of outputs with the calls that the request demands or is strict about; None if it leaves all open.

    While a model may think and may answer, nothing is held to: strict functions of such models must be demanded.
    """
    if not (tools := request.demanded):
        is_held = any(tool.strict for tool in request.offered) and dialect.family == "glm4" and not dialect.thinks
        return strict_calls(dialect.understood(request.offered), specials) if is_held else None
    if dialect.family is None:
        raise InvalidRequest(
            "tool_choice: calls of this model are not read here (tool_parser: none), so none can be demanded; "
            'send "none", or serve it with another tool_parser',
            param="tool_choice",
        )
    known = dialect.understood(tools)
    return forced_calls(known, dialect.family, specials, parallel=request.parallel_tool_calls)
