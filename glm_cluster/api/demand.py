"""What an output is held to, whatever a model would rather say: calls that must come, or their schemas, or a form.

Knows requests and grammars. Refuses to know how a grammar is followed.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from hashlib import sha256

from glm_cluster.api.openai import ChatCompletionRequest, GenerationBody
from glm_cluster.errors import InvalidRequest
from glm_cluster.records import Grammar
from glm_cluster.text.tools.choice import forced_calls, strict_calls
from glm_cluster.text.tools.dialect import Dialect
from glm_cluster.text.tools.reasoning import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The grammar of whole outputs, and what can be told of their calls because of it."""

    grammar: Grammar
    parts: tuple[tuple[Grammar, str], ...]  # what it is made of, each with the field that asks for it
    certain: bool = False  # whatever begins as a call is one
    at_once: bool = False  # calls come first, or the output is all text


def held_form(request: GenerationBody, *, opens_line: bool = False) -> Held | None:
    """What the form of an answer asks for; None if there is none."""
    if request.grammar is None:
        return None
    form = replace(request.grammar, opens_line=opens_line)
    return Held(grammar=form, parts=((form, request.form_field),))


def held_output(
    request: ChatCompletionRequest,
    dialect: Dialect,
    specials: Collection[str],
    *,
    thinking: State | None,
    opens_line: bool,
) -> Held | None:
    """What a chat's output is held to; None if all is open. A call that is demanded leaves no place for a form.

    `thinking`: where the prompt leaves a model that thinks. `opens_line`: an answer begins with a line break.
    """
    if request.demanded:
        return _calls(_demanded(request, dialect, specials), certain=True)
    offered, family = dialect.understood(request.offered), dialect.family
    form = held_form(request, opens_line=opens_line)
    if family is None or not offered:
        return form
    if form is not None:
        calls = forced_calls(offered, family, specials, parallel=request.parallel_tool_calls)
        return _either(form, calls)
    strict = strict_calls(offered, family, specials, thinking) if any(tool.strict for tool in offered) else None
    return None if strict is None else _calls(strict, certain=family == "glm4")


def held_key(request: ChatCompletionRequest, dialect: Dialect, *, thinking: State | None, opens_line: bool) -> bytes:
    """Of all that `held_output` depends on but the control tokens, which are a model's."""
    form = None if request.grammar is None else (request.grammar, request.form_field)
    tools = (bool(request.demanded), request.demanded or request.offered, request.parallel_tool_calls)
    said = repr((tools, form, dialect, thinking, opens_line))
    return sha256(said.encode("utf-8", "surrogatepass")).digest()


def _demanded(request: ChatCompletionRequest, dialect: Dialect, specials: Collection[str]) -> Grammar:
    if dialect.family is None:
        raise InvalidRequest(
            "tool_choice: calls of this model are not read here (tool_parser: none), so none can be demanded; "
            'send "none", or serve it with another tool_parser',
            param="tool_choice",
        )
    known = dialect.understood(request.demanded)
    return forced_calls(known, dialect.family, specials, parallel=request.parallel_tool_calls)


def _calls(grammar: Grammar, *, certain: bool) -> Held:
    """Where text may stand before tags, it may spell one out."""
    return Held(grammar=grammar, parts=((grammar, "tools"),), certain=certain)


def _either(form: Held, calls: Grammar) -> Held:
    """The form or calls. Where a form may begin as a call does, it is a call if all of it reads as one."""
    grammar = replace(form.grammar, instead=calls.source)
    ((_, field),) = form.parts
    certain = grammar.opens_line or grammar.kind in ("json", "json_schema", "loose_schema")
    parts = (*form.parts, (calls, "tools"), (grammar, field))
    return Held(grammar=grammar, parts=parts, certain=certain, at_once=True)
