"""How a prompt ends: where in its thinking a model goes on from there.

Knows the tags of reasoning in a rendered prompt. Refuses to know what comes before them.
"""

from collections.abc import Iterator, Mapping, Sequence

from glm_cluster.text.tokenizer import Plain, Segment, Special
from glm_cluster.text.tools.output import Family
from glm_cluster.text.tools.reasoning import CLOSE, OPEN, State, state_after

_LAST = 4  # segments that the end can be told from


def thinking_at_end(prompt: Sequence[Segment], special_ids: Mapping[str, int]) -> State:
    """Where a model stands that goes on from `prompt`. What a user typed counts for nothing if tags are tokens."""
    names = {id: name for name, id in special_ids.items()}
    end = [segment.text if isinstance(segment, Plain) else names[segment.id] for segment in prompt[-_LAST:]]
    if OPEN in special_ids and not any(part in (OPEN, CLOSE) for part in end[-2:]):
        return "before"
    return state_after("".join(end))


def with_thinking_closed(
    prompt: Sequence[Segment], special_ids: Mapping[str, int], family: Family | None
) -> tuple[Segment, ...]:
    """`prompt` for an answer without reasoning, as one under a grammar has to be."""
    state = thinking_at_end(prompt, special_ids)
    line_break = "" if family == "glm47" else "\n"
    added: dict[State, tuple[str, ...]] = {
        "inside": (CLOSE, line_break),
        "after": (line_break,),
        "before": (line_break, OPEN, CLOSE, line_break) if OPEN in special_ids else (),
    }
    return (*prompt, *_segments(added[state], special_ids))


def _segments(parts: Sequence[str], special_ids: Mapping[str, int]) -> Iterator[Segment]:
    for part in filter(None, parts):
        yield Special(special_ids[part]) if part in (OPEN, CLOSE) and part in special_ids else Plain(part)
