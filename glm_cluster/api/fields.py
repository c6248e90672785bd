"""The fields of a generation, one by one: their shapes and bounds, for both wires.

Refuses to know which route has which, and the model: ids are checked against its vocabulary by the service.
"""

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue

from glm_cluster.api.moot import PART, Moot
from glm_cluster.api.schema import FirstFault, Integer, Schema, TokenIds, at_most, not_empty, one_as_list, too_many

MAX_ITEMS = 4096
MAX_PROMPTS = 256
MAX_STOPS = 16
MAX_BAD_WORDS = 256
MAX_BIASES = 1024
MAX_ALLOWED = 65536
MAX_VARIABLES = 32  # for a chat template
LOWEST_TEMPERATURE = 1e-5  # logits divided by less overflow fp32; the likeliest token is all that is left there
_OTHERS = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template")


def _greedy_or_warm(temperature: float) -> float:
    return temperature if temperature >= LOWEST_TEMPERATURE else 0.0


def _not_zero(count: int) -> int:
    if count == 0:
        raise ValueError("Input should be at least 1, or -1 for as many as fit")
    return count


def _words_in(words: list[str]) -> list[str]:
    if not all(word.strip() for word in words):
        raise ValueError("Words should have a character that is no space")
    return words


def _few_variables(values: object) -> object:
    if isinstance(values, dict) and len(values) > MAX_VARIABLES:
        raise ValueError(too_many(MAX_VARIABLES))
    return values


def _variables(values: dict[str, object]) -> dict[str, object]:
    if taken := next((name for name in values if name in _OTHERS), None):
        raise ValueError(f"{taken} cannot be given here; it is a field of its own, or the checkpoint's")
    return values


def _bias_ids(biases: object) -> object:
    """Read the token ids that JSON can only spell as strings."""
    if not isinstance(biases, dict):
        return biases
    if len(biases) > MAX_BIASES:
        raise ValueError(too_many(MAX_BIASES))
    for key in biases:
        if not (key.isascii() and key.isdigit() and len(key) < 19):
            raise ValueError(f'Names should be token ids, such as "50256", not {key[:40]!r}')
    ids = {int(key): value for key, value in biases.items()}
    if len(ids) < len(biases):
        raise ValueError("a token id stands twice in it")
    return ids


class TextPart(Schema):
    """A piece of a message's content."""

    moot: ClassVar[Moot] = PART
    type: Literal["text"]
    text: str


def _content_shape(content: object) -> str | None:
    if isinstance(content, str):
        return "text"
    return "parts" if isinstance(content, list) else None


def _prompt_shape(prompt: object) -> str | None:
    """Which of the four forms it must be in, from the outermost type and the first item's."""
    match prompt:
        case str():
            return "text"
        case [str(), *_]:
            return "texts"
        case [list(), *_]:
            return "many_token_ids"
        case list():
            return "token_ids"
    return None


TextParts: TypeAlias = Annotated[list[TextPart], FirstFault(), BeforeValidator(at_most(MAX_ITEMS))]
Content: TypeAlias = Annotated[
    Annotated[str, Tag("text")] | Annotated[TextParts, Tag("parts")],
    Discriminator(
        _content_shape,
        custom_error_type="content_type",
        custom_error_message='Input should be a string or a list of {"type": "text", "text": ...} parts',
    ),
]
_Text: TypeAlias = Annotated[str, AfterValidator(not_empty)]
_Texts: TypeAlias = Annotated[list[_Text], FirstFault(), BeforeValidator(at_most(MAX_PROMPTS))]
_Ids: TypeAlias = Annotated[TokenIds, AfterValidator(not_empty)]
_ManyIds: TypeAlias = Annotated[list[_Ids], FirstFault(), BeforeValidator(at_most(MAX_PROMPTS))]
Prompt: TypeAlias = Annotated[
    Annotated[_Text, Tag("text")]
    | Annotated[_Texts, Tag("texts")]
    | Annotated[_Ids, Tag("token_ids")]
    | Annotated[_ManyIds, Tag("many_token_ids")],
    Discriminator(
        _prompt_shape,
        custom_error_type="prompt_type",
        custom_error_message="Input should be a string, a list of strings, a list of token ids or a list of such lists",
    ),
]

_Words: TypeAlias = list[Annotated[str, Field(min_length=1, max_length=256)]]
Temperature: TypeAlias = Annotated[float, Field(ge=0, le=2), AfterValidator(_greedy_or_warm)]
Penalty: TypeAlias = Annotated[float, Field(ge=-2, le=2)]
Repetition: TypeAlias = Annotated[float, Field(ge=0.01, le=10)]  # logits divided by next to nothing overflow
TopK: TypeAlias = Annotated[Integer, Field(ge=-1, lt=2**31)]  # -1 and 0 are off
Few: TypeAlias = Annotated[Integer, Field(ge=0, le=20)]
Seed: TypeAlias = Annotated[Integer, Field(ge=-(2**63), lt=2**63)]
Index: TypeAlias = Annotated[Integer, Field(ge=0, lt=2**31)]
_WORD: JsonSchemaValue = {"type": "string", "minLength": 1, "maxLength": 256}
Stops: TypeAlias = Annotated[
    _Words,
    FirstFault(),
    BeforeValidator(at_most(MAX_STOPS)),
    BeforeValidator(one_as_list),
    WithJsonSchema({"anyOf": [_WORD, {"type": "array", "items": _WORD, "maxItems": MAX_STOPS}]}),
]
BadWords: TypeAlias = Annotated[
    _Words, FirstFault(), BeforeValidator(at_most(MAX_BAD_WORDS)), AfterValidator(_words_in)
]
Biases: TypeAlias = Annotated[
    dict[int, Annotated[float, Field(ge=-100, le=100)]],
    BeforeValidator(_bias_ids),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,18}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": MAX_BIASES,
        }
    ),
]
Allowed: TypeAlias = Annotated[TokenIds, AfterValidator(not_empty), BeforeValidator(at_most(MAX_ALLOWED))]
Kept: TypeAlias = Annotated[Integer, Field(ge=-1, lt=2**31), AfterValidator(_not_zero)]
Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=512)]
Priority: TypeAlias = Annotated[Integer, Field(ge=-(2**31), lt=2**31)]
Variables: TypeAlias = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=64)],
        bool | int | float | Annotated[str, Field(max_length=4096)] | None,
    ],
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"minLength": 1, "maxLength": 64},
            "additionalProperties": {
                "anyOf": [{"type": ["boolean", "number", "null"]}, {"type": "string", "maxLength": 4096}]
            },
            "maxProperties": MAX_VARIABLES,
        }
    ),
    BeforeValidator(_few_variables),
    AfterValidator(_variables),
]
