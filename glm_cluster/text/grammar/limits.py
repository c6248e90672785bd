"""How much a grammar may ask for. Knows sizes; refuses to know what a grammar means.

What these let through, the library bounds in its own units: fuel for a regex, states of a lexer, items of a parser.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import llguidance

from glm_cluster.errors import InvalidRequest
from glm_cluster.text.grammar.meetings import most_meeting
from glm_cluster.text.grammar.places import schemas

SOURCE_BYTES = 64 << 10
REGEX_BYTES = 4 << 10
SCHEMA_DEPTH = 64
SCHEMA_NODES = 8192
NAMED_PATTERNS = 64  # `patternProperties` of a schema, at all places: each is compared with each
MEETING_PATTERNS = 8  # at one string; each that is added takes four times as long
_NAMED_PATTERNS_REFERRED = 2048  # the same times references, as each may bring them to another place
CHOICES = 1024
LIBRARY = llguidance.LLParserLimits(  # a lexer state takes 1 to 2 kB, and a matcher has its own
    max_items_in_row=8_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=400_000,
    step_max_items=100_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)


def check_source(source: str) -> None:
    """Refuse a source that is too long or no Unicode, whatever its kind."""
    if len(source) > SOURCE_BYTES or _num_bytes(source) > SOURCE_BYTES:
        raise InvalidRequest(f"it has more than {SOURCE_BYTES} bytes; make it shorter")


def check_regex(regex: str) -> None:
    """Refuse a regex that is too long, on its own or as a schema's `pattern`."""
    if len(regex) > REGEX_BYTES or _num_bytes(regex) > REGEX_BYTES:
        raise InvalidRequest(f"a regex has more than {REGEX_BYTES} bytes; make it shorter")


def check_patterns(schema: Mapping[str, Any]) -> None:
    """Refuse a schema that has more patterns than can be compared, at one string or of names."""
    if has_many_meeting(schema):
        raise InvalidRequest(f"a string has to match more than {MEETING_PATTERNS} patterns at once; use fewer")
    if has_many_named_patterns(schema):
        raise InvalidRequest(
            f"it has more than {NAMED_PATTERNS} patternProperties, or many that references lead to; use fewer"
        )


def has_many_meeting(schema: Mapping[str, Any]) -> bool:
    """Whether strings that match all patterns which meet would be sought for long."""
    return most_meeting(schema) > MEETING_PATTERNS


def has_many_named_patterns(schema: Mapping[str, Any]) -> bool:
    """Whether comparing them would take long."""
    patterns = references = 0
    for one in schemas(schema):
        references += "$ref" in one
        by_pattern = one.get("patternProperties")
        patterns += len(by_pattern) if isinstance(by_pattern, Mapping) else 0
    return patterns > NAMED_PATTERNS or patterns * references > _NAMED_PATTERNS_REFERRED


def _num_bytes(source: str) -> int:
    try:
        return len(source.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest("it holds one half of a surrogate pair, which is no character; leave it out") from error


def read_json(source: str) -> Any:
    """The value that `source` spells, or refuse it: too long, too deep, too many values, or no JSON."""
    check_source(source)
    if _depth(source) > SCHEMA_DEPTH:
        raise InvalidRequest(f"it is nested more than {SCHEMA_DEPTH} deep; make it flatter")
    try:
        value = json.loads(source, parse_constant=_no_number)
    except ValueError as error:
        raise InvalidRequest(f"it is not JSON ({error})") from error
    if sum(1 for _ in nodes(value)) > SCHEMA_NODES:
        raise InvalidRequest(f"it has more than {SCHEMA_NODES} values; make it smaller")
    return value


def nodes(value: Any) -> Iterator[Any]:
    """The value and every value within it."""
    yield value
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in within:
        yield from nodes(one)


def _depth(source: str) -> int:
    """How deep brackets nest outside strings; no parser is asked, which would recurse."""
    depth = deepest = 0
    in_string = escaped = False
    for character in source:
        if in_string:
            in_string = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
