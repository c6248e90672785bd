"""What a model may write when it must call tools, or call them strictly, as a grammar: its calls always parse.

Knows what stands before, between and after the calls of each family. Refuses to know how one call is written, and how
a grammar is applied. The output ends where the grammar is satisfied and a stop token follows.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import chain

from glm_cluster.errors import InvalidRequest
from glm_cluster.records import Grammar
from glm_cluster.text.grammar.limits import SOURCE_BYTES
from glm_cluster.text.grammar.scrutiny import Scrutiny
from glm_cluster.text.tools import glm4, glm45, reasoning
from glm_cluster.text.tools.output import Family
from glm_cluster.text.tools.reasoning import State
from glm_cluster.text.tools.rules import ANYTHING, glm4_rules, lenient_tagged_rules, quoted, tagged_rules
from glm_cluster.text.tools.tool import Tool

_ANY_OBJECT = {"additionalProperties": True}
_SPACE = r"[\s\x1c-\x1f]"  # what Python strips, as the reader does around a name
# From where the prompt leaves a model that thinks: no call begins before it has closed its reasoning.
_THINKING: dict[State, str] = {
    "inside": f"start: TEXT? ({reasoning.CLOSE} answer)?",
    "before": rf"start: answer | /\s+/? {reasoning.OPEN} TEXT? ({reasoning.CLOSE} answer)?",
    "after": "start: answer",
}


def forced_calls(tools: Sequence[Tool], family: Family, specials: Collection[str], *, parallel: bool) -> Grammar:
    """The grammar of an output that is one call of one of the tools, or of several where `parallel`.

    Where the calls of a family have a control token between them (GLM-4), there can be several only if there is one.
    """
    if not tools:
        raise InvalidRequest("tool_choice: there are no tools to choose from; give some", param="tool_choice")
    scrutiny = Scrutiny()
    if family == "glm4":
        between = glm4.TURN if glm4.TURN in specials else None
        rules: list[Iterable[str]] = [glm4_rules(index, tool, scrutiny) for index, tool in enumerate(tools)]
    else:
        line_break = _line_break(family)
        between = quoted(line_break) if line_break else ""  # a literal may not be empty
        rules = [tagged_rules(index, tool, line_break, specials, scrutiny) for index, tool in enumerate(tools)]
    start = f"start: call ({between} call)*" if parallel and between is not None else "start: call"
    return _grammar([start], rules)


def strict_calls(
    tools: Iterable[Tool], family: Family, specials: Collection[str], thinking: State | None
) -> Grammar | None:
    """The grammar of any output whose calls of strict functions keep to their schemas; None where none can tell.

    `thinking`: where the prompt leaves a model that thinks. Nothing can be told where a call begins by a text that may
    stand anywhere: in reasoning before GLM-4's calls, or in front of tags that are no tokens.
    """
    functions = [tool for tool in tools if not tool.built_in]
    if family == "glm4":
        return None if thinking is not None else _strict_lines(functions, specials)
    tags = glm45.TAGS if thinking is None else (*glm45.TAGS, reasoning.OPEN, reasoning.CLOSE)
    if not set(tags).issubset(specials):
        return None
    scrutiny = Scrutiny()
    line_break = _line_break(family)
    rules = [
        tagged_rules(index, tool, line_break, specials, scrutiny) if tool.strict else lenient_tagged_rules(index, tool)
        for index, tool in enumerate(functions)
    ]
    lines = [_THINKING[thinking or "after"], "answer: TEXT? (call TEXT?)*", f"TEXT: {ANYTHING}"]
    return _grammar(lines, rules)


def _strict_lines(functions: Sequence[Tool], specials: Collection[str]) -> Grammar:
    """The same of GLM-4: text is whatever does not begin as a call does, in each segment between control tokens."""
    names = "|".join(tool.name for tool in functions)
    scrutiny = Scrutiny()
    rules = [
        glm4_rules(index, tool if tool.strict else Tool(name=tool.name, parameters=_ANY_OBJECT), scrutiny)
        for index, tool in enumerate(functions)
    ]
    lines = [
        f"start: segment ({glm4.TURN} segment)*" if glm4.TURN in specials else "start: segment",
        "segment: call | TEXT |",
        rf"TEXT: {ANYTHING} & ~/(?s:{_SPACE}*({names})[{_SPACE}&&[^\n]]*\n(\{{.*)?)/",
    ]
    return _grammar(lines, rules)


def _grammar(lines: Iterable[str], rules: Sequence[Iterable[str]]) -> Grammar:
    """`lines`, and `call`: one of those whose rules are given. Rules that no engine would take are not written out."""
    call = "call: " + " | ".join(f"call_{index}" for index in range(len(rules)))
    written: list[str] = []
    length = 0
    for line in chain(lines, [call], *rules):
        written.append(line)
        length += len(line)
        if length > SOURCE_BYTES:
            raise InvalidRequest(
                f"tools: the grammar of their calls has more than {SOURCE_BYTES} bytes; "
                "make their schemas shorter, definitions above all, or offer fewer",
                param="tools",
            )
    return Grammar("lark", "\n".join((*written, "")))


def _line_break(family: Family) -> str:
    return "\n" if family == "glm45" else ""
