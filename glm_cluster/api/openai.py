"""What a client may ask of a generating model: the OpenAI request fields this cluster implements, and no others.

Knows shapes and ranges, for both wires. Refuses to know the model: its name, vocabulary and length are checked by the
service.
"""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from glm_cluster.api.schema import Body, Count, FewIds, FirstFault, Schema, TokenIds, at_most, not_empty

MAX_ITEMS = 4096
LOWEST_TEMPERATURE = 1e-5  # logits divided by less overflow fp32


def _greedy_or_warm(temperature: float) -> float:
    if 0 < temperature < LOWEST_TEMPERATURE:
        raise ValueError(f"Input should be 0, which is greedy, or at least {LOWEST_TEMPERATURE:g}")
    return temperature


class TextPart(Schema):
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


TextParts: TypeAlias = Annotated[list[TextPart], FirstFault(), BeforeValidator(at_most(MAX_ITEMS))]
Content: TypeAlias = Annotated[
    Annotated[str, Tag("text")] | Annotated[TextParts, Tag("parts")],
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
    AfterValidator(not_empty),
]


class Message(Schema):
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


class StreamOptions(Schema):
    """What a stream carries beside its tokens."""

    include_usage: bool = False


class _GenerationFields(Body):
    """The fields both routes share."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2), AfterValidator(_greedy_or_warm)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Count | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop_token_ids: FewIds = Field(default=[], max_length=64)
    return_token_ids: bool = False
    # The name is that of HF's `generate`. 0 switches speculation off; more than the server's setting means the setting.
    prompt_lookup_num_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None

    @property
    def output_limit(self) -> int | None:
        """Most tokens to generate, if the client says so."""
        return self.max_tokens

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options may only be given with stream: true")
        return self


class ChatCompletionRequest(_GenerationFields):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1), FirstFault(), BeforeValidator(at_most(MAX_ITEMS))]
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
