"""Strict bodies: what every request has in common, and the sentence that refuses one.

Knows shapes and bounds, for both wires. Refuses to know any route's fields.
"""

from collections.abc import Callable
from itertools import islice
from typing import Annotated, ClassVar, Self, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails

from glm_cluster.api.moot import Moot, describe, without
from glm_cluster.errors import InvalidRequest

_ID_LIMIT = 2**63
MOST_NAMED = 16  # faults that one refusal names
_SHOWN = 64  # characters of a name
_GLANCE = 16384  # ids; a fraction of a millisecond

T = TypeVar("T", bound=str | list[int])


class FirstFault(FailFast):
    """One fault of a long list is enough: a million of them would take seconds to describe."""

    __hash__ = object.__hash__  # a member of a union must have one


def _at_a_glance(value: object, look_closely: ValidatorFunctionWrapHandler) -> object:
    """Let a list of ids pass a slice at a time: pydantic, which names what is wrong, looks at all in one long call."""
    if isinstance(value, list):
        slices = (value[start : start + _GLANCE] for start in range(0, len(value), _GLANCE))
        if all({*map(type, ids)} == {int} and min(ids) >= 0 and max(ids) < _ID_LIMIT for ids in slices):
            return value
    return look_closely(value)


def _whole(value: object) -> object:
    """JSON has one kind of number: a gateway may make 10.0 of 10."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer: TypeAlias = Annotated[int, BeforeValidator(_whole)]
Count: TypeAlias = Annotated[Integer, Field(ge=1, lt=2**31)]
FewIds: TypeAlias = Annotated[list[Annotated[int, Field(ge=0, lt=_ID_LIMIT)]], FirstFault()]
TokenIds: TypeAlias = Annotated[FewIds, WrapValidator(_at_a_glance)]  # takes no bound on its length


def too_many(most: int) -> str:
    """What is said of a list longer than `most`."""
    return f"Input should have at most {most} items"


def at_most(most: int) -> Callable[[object], object]:
    """Make a validator that refuses a long list before anything looks into it."""

    def check(items: object) -> object:
        if isinstance(items, list) and len(items) > most:
            raise ValueError(too_many(most))
        return items

    return check


def one_as_list(value: object) -> object:
    """Take one string for a list of it."""
    return [value] if isinstance(value, str) else value


def not_empty(value: T) -> T:
    """Refuse what holds nothing."""
    if not value:
        raise ValueError("Input should not be empty")
    return value


class Schema(BaseModel):
    """Fields of exactly these types, and no others."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    moot: ClassVar[Moot] = {}  # what may be asked for because it is done anyway

    @model_validator(mode="before")
    @classmethod
    def _moot_is_not_asked(cls, raw: object) -> object:
        return without(raw, cls.moot) if isinstance(raw, dict) and cls.moot else raw

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With the fields that are moot."""
        described = handler(core_schema)
        describe(handler.resolve_ref_schema(described), cls.moot)
        return described

    @model_validator(mode="before")
    @classmethod
    def _few_are_unknown(cls, raw: object) -> object:
        """Refuse many unknown fields at a glance: pydantic would describe each of a million."""
        if isinstance(raw, dict) and len(raw) > len(cls.model_fields) + MOST_NAMED:
            known = {field.alias or name for name, field in cls.model_fields.items()}
            unknown = islice((str(name)[:_SHOWN] for name in raw if name not in known), MOST_NAMED)
            raise ValueError(f"unsupported fields: {', '.join(unknown)} and more; leave them out")
        return raw

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, raw: object) -> object:
        """Null stands for the default, as with OpenAI; an unsupported field stays one."""
        if not isinstance(raw, dict) or None not in raw.values():
            return raw
        optional = {field.alias or name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: value for name, value in raw.items() if value is not None or name not in optional}


class Body(Schema):
    """A whole request, which names its model."""

    model: str

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Build from decoded JSON or a decoded message; refuse in a sentence that names every field at fault."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise _refusal(error.errors(include_url=False, include_context=False, include_input=False)) from error


class ModelName(Body):
    """A request that is nothing but a name."""


def _refusal(details: list[ErrorDetails]) -> InvalidRequest:
    """One sentence for all that is wrong, of bounded length; `param` is the first field at fault."""
    faults = [(_path(detail["loc"]), detail) for detail in details]
    unknown = [path for path, detail in faults if detail["type"] == "extra_forbidden"]
    wrong = [_sentence(path, detail["msg"]) for path, detail in faults if detail["type"] != "extra_forbidden"]
    sentences = wrong[:MOST_NAMED]
    if unknown:
        sentences.insert(0, f"unsupported fields: {', '.join(unknown[:MOST_NAMED])}; leave them out")
    return InvalidRequest("; ".join(sentences), param=faults[0][0] or None)


def _sentence(path: str, message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"{path}: {message}" if path else message


def _path(location: tuple[int | str, ...]) -> str:
    """`messages.0.content`, without the tags that pydantic adds where a field has several shapes."""
    pairs = zip(("", *location), location, strict=False)
    return ".".join(str(part) for before, part in pairs if part not in _TAGS.get(before, ()))


_TAGS: dict[int | str, tuple[str, ...]] = {
    "content": ("text", "parts"),
    "tool_choice": ("mode", "named"),
    "prompt": ("text", "texts", "token_ids", "many_token_ids"),
    "input": ("text", "texts", "token_ids", "many_token_ids"),
}
