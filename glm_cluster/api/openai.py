"""What a client may send: the OpenAI request fields this cluster implements, and no others.

Knows shapes and ranges, for both wires. Refuses to know the model: its name, vocabulary and length are checked by the
service.
"""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from glm_cluster.errors import InvalidRequest


class _FirstFault(FailFast):
    """One fault of a long list is enough: a million of them would take seconds to describe."""

    __hash__ = object.__hash__  # a member of a union must have one


MAX_ITEMS = 4096
TOO_MANY = f"Input should have at most {MAX_ITEMS} items"
LOWEST_TEMPERATURE = 1e-5  # logits divided by less overflow fp32

Count: TypeAlias = Annotated[int, Field(ge=1, lt=2**31)]
TokenIds: TypeAlias = Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], _FirstFault()]


def _few_enough(items: object) -> object:
    """Refuse a long list before anything looks into it."""
    if isinstance(items, list) and len(items) > MAX_ITEMS:
        raise ValueError(TOO_MANY)
    return items


def _greedy_or_warm(temperature: float) -> float:
    if 0 < temperature < LOWEST_TEMPERATURE:
        raise ValueError(f"Input should be 0, which is greedy, or at least {LOWEST_TEMPERATURE:g}")
    return temperature


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TextPart(_Schema):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


def _content_shape(content: object) -> str | None:
    if isinstance(content, str):
        return "text"
    return "parts" if isinstance(content, list) else None


def _prompt_shape(prompt: object) -> str | None:
    if isinstance(prompt, str):
        return "text"
    return "token_ids" if isinstance(prompt, list) else None


def _not_empty(prompt: str | list[int]) -> str | list[int]:
    if not prompt:
        raise ValueError("Input should not be empty")
    return prompt


Content: TypeAlias = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[TextPart], _FirstFault(), BeforeValidator(_few_enough), Tag("parts")],
    Discriminator(
        _content_shape,
        custom_error_type="content_type",
        custom_error_message='Input should be a string or a list of {"type": "text", "text": ...} parts',
    ),
]
Prompt: TypeAlias = Annotated[
    Annotated[str, Tag("text")] | Annotated[TokenIds, Tag("token_ids")],
    Discriminator(
        _prompt_shape,
        custom_error_type="prompt_type",
        custom_error_message="Input should be one string or one list of token ids",
    ),
    AfterValidator(_not_empty),
]


class Message(_Schema):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Content

    @property
    def text(self) -> str:
        """The content in one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    @model_validator(mode="after")
    def _user_says_something(self) -> Self:
        if self.role == "user" and not self.text:
            raise ValueError("a user message must have some content")
        return self


class StreamOptions(_Schema):
    """What a stream carries beside its tokens."""

    include_usage: bool = False


class _GenerationFields(_Schema):
    """The fields both routes share."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2), AfterValidator(_greedy_or_warm)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Count | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop_token_ids: Annotated[TokenIds, Field(max_length=64)] = []
    return_token_ids: bool = False

    @property
    def output_limit(self) -> int | None:
        """Most tokens to generate, if the client says so."""
        return self.max_tokens

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, raw: object) -> object:
        """Null stands for the default, as with OpenAI; an unsupported field stays one."""
        if not isinstance(raw, dict):
            return raw
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: value for name, value in raw.items() if value is not None or name not in optional}

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options may only be given with stream: true")
        return self

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Build from decoded JSON or a decoded message; refuse in a sentence that names every field at fault."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise _refusal(error.errors(include_url=False, include_context=False, include_input=False)) from error


class ChatCompletionRequest(_GenerationFields):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1), _FirstFault(), BeforeValidator(_few_enough)]
    max_completion_tokens: Count | None = None

    @property
    def output_limit(self) -> int | None:
        """Most tokens to generate, under OpenAI's new name or the old one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.max_tokens is not None and self.output_limit != self.max_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        return self


class CompletionRequest(_GenerationFields):
    """Body of POST /v1/completions."""

    prompt: Prompt


def _refusal(details: list[ErrorDetails]) -> InvalidRequest:
    """One sentence for all that is wrong, of bounded length; `param` is the first field at fault."""
    faults = [(_path(detail["loc"]), detail) for detail in details]
    unknown = [path for path, detail in faults if detail["type"] == "extra_forbidden"]
    wrong = [_sentence(path, detail["msg"]) for path, detail in faults if detail["type"] != "extra_forbidden"]
    sentences = wrong[:_NAMED_FAULTS]
    if unknown:
        sentences.insert(0, f"unsupported fields: {', '.join(unknown[:_NAMED_FAULTS])}; leave them out")
    return InvalidRequest("; ".join(sentences), param=faults[0][0] or None)


def _sentence(path: str, message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"{path}: {message}" if path else message


def _path(location: tuple[int | str, ...]) -> str:
    """`messages.0.content`, without the tags that pydantic adds where a field has two shapes."""
    pairs = zip(("", *location), location, strict=False)
    return ".".join(str(part) for before, part in pairs if (before, part) not in _TAGS)


_NAMED_FAULTS = 16
_TAGS = {("content", "text"), ("content", "parts"), ("prompt", "text"), ("prompt", "token_ids")}
