"""What a client may ask of a generating model: the OpenAI request fields this cluster implements, and no others.

Names and meanings are OpenAI's, and vLLM's where OpenAI has none. Knows which fields there are and which go together,
for both wires. Refuses to know the model: its name, vocabulary and length are checked by the service.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from glm_cluster.api.fields import (
    MAX_ITEMS,
    Allowed,
    BadWords,
    Biases,
    Content,
    Few,
    Index,
    Kept,
    Name,
    Penalty,
    Priority,
    Prompt,
    Repetition,
    Seed,
    Stops,
    Temperature,
    TopK,
)
from glm_cluster.api.moot import ANSWER, CHAT, COMPLETION, MESSAGE, RESULT, STREAM_OPTIONS, Moot, without
from glm_cluster.api.schema import Count, FewIds, FirstFault, Integer, Schema, at_most
from glm_cluster.api.structured import StructuredBody
from glm_cluster.api.thinking import TemplateFields
from glm_cluster.api.tools import Calls, ToolFields
from glm_cluster.config import MOST_CHOICES


class Message(Schema):
    """One turn of a conversation."""

    moot: ClassVar[Moot] = {**MESSAGE, **ANSWER, **RESULT}
    role: Literal["system", "developer", "user", "assistant", "tool", "observation"]  # the last: GLM's name of `tool`
    content: Content | None = None
    tool_calls: Calls = Field(default=[])
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's newer name of it
    refusal: str | None = None  # what an answer of OpenAI's says instead of content
    tool_call_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None  # of who speaks, or of the tool whose result this is

    @property
    def text(self) -> str:
        """The content in one string."""
        if self.content is None or isinstance(self.content, str):
            return self.content or self.refusal or ""
        return "".join(part.text for part in self.content)

    @property
    def turn(self) -> dict[str, Any]:
        """The message in the form that conversations are made of."""
        is_text = self.content is not None or self.refusal or not self.tool_calls
        turn: dict[str, Any] = {"role": self.role, "content": self.text if is_text else None}
        if self.tool_calls:
            turn["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        more = {"reasoning_content": self.thought, "tool_call_id": self.tool_call_id, "name": self.name or None}
        return turn | {name: value for name, value in more.items() if value is not None}

    @property
    def thought(self) -> str | None:
        """What an assistant wrote for itself, under either name."""
        return self.reasoning if self.reasoning_content is None else self.reasoning_content

    @property
    def size_bytes(self) -> int:
        """About how much there is to render."""
        arguments = sum(len(call.function.arguments) for call in self.tool_calls)
        return len(self.text) + len(self.thought or "") + arguments

    @model_validator(mode="before")
    @classmethod
    def _moot_is_not_asked(cls, raw: object) -> object:
        """What is noted on an answer or on a result would ask for something on another's message: pictures, say."""
        if not isinstance(raw, dict):
            return raw
        own = {"assistant": ANSWER, "tool": RESULT}.get(str(raw.get("role")), {})
        return without(raw, {**MESSAGE, **own})

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, raw: object) -> object:
        """Null stands for the default: clients send answers back with every field that they know."""
        if isinstance(raw, dict):
            return {name: value for name, value in raw.items() if value is not None or name == "role"}
        return raw

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        """An assistant may have thought alone, and a tool may have nothing to say; clients send both as null."""
        if self.content in (None, []) and self.role not in ("assistant", "tool", "observation"):
            raise ValueError(f"a {self.role} message must have some content")
        return self

    @model_validator(mode="after")
    def _fields_of_the_role(self) -> Self:
        if self.role != "assistant" and (self.tool_calls or self.thought is not None or self.refusal):
            raise ValueError(f"tool_calls, reasoning_content and refusal are an assistant's, not {self.role}'s")
        if self.role not in ("tool", "observation") and self.tool_call_id:
            raise ValueError(f"tool_call_id belongs to a tool's result, not to {self.role}'s message")
        return self


class StreamOptions(Schema):
    """What a stream carries beside its tokens."""

    moot: ClassVar[Moot] = STREAM_OPTIONS
    include_usage: bool = False
    continuous_usage_stats: bool = False  # in every chunk, what the request cost so far


class GenerationBody(StructuredBody):
    """The fields both routes share."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[Integer, Field(ge=1, le=128)] = 1
    max_tokens: Count | None = None
    min_tokens: Index = 0
    # None here, and in the four more that checkpoints have defaults for: the model's own way.
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: TopK | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Seed | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Repetition | None = None
    logit_bias: Biases = Field(default={})
    allowed_token_ids: Allowed | None = None
    bad_words: BadWords = Field(default=[])
    stop: Stops = Field(default=[])
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    stop_token_ids: FewIds = Field(default=[], max_length=64)
    return_token_ids: bool = False
    prompt_logprobs: Few | None = None
    truncate_prompt_tokens: Kept | None = None  # keep so many of the last; -1: as many as fit
    user: Name | None = None  # noted, and never interpreted
    cache_salt: Name | None = None
    priority: Priority = 0  # the lowest begins first
    # The name is that of HF's `generate`. 0 switches speculation off; more than the server's setting means the setting.
    prompt_lookup_num_tokens: Index | None = None

    @property
    def output_limit(self) -> int | None:
        """Most tokens to generate, if the client says so."""
        return self.max_tokens

    @property
    def asker(self) -> str | None:
        """Who asks, in the client's own words."""
        return self.user

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens to tell of beside each sampled one; None: not even of that."""
        return None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options may only be given with stream: true")
        return self

    @model_validator(mode="after")
    def _some_text_may_come(self) -> Self:
        if self.output_limit is not None and self.min_tokens > self.output_limit:
            raise ValueError(f"min_tokens: {self.min_tokens} is more than max_tokens, {self.output_limit}")
        return self

    @model_validator(mode="after")
    def _some_token_may_come(self) -> Self:
        self.check_form_alone(
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            allowed_token_ids=self.allowed_token_ids is not None,
            bad_words=self.bad_words,
        )
        return self


class ChatCompletionRequest(TemplateFields, ToolFields, GenerationBody):
    """Body of POST /v1/chat/completions."""

    moot: ClassVar[Moot] = CHAT
    messages: Annotated[list[Message], Field(min_length=1), FirstFault(), BeforeValidator(at_most(MAX_ITEMS))]
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Few = 0
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    safety_identifier: Name | None = None  # OpenAI's newer name of `user`

    @property
    def output_limit(self) -> int | None:
        """Most tokens to generate, under OpenAI's new name or the old one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def asker(self) -> str | None:
        """Who asks, under OpenAI's new name or the old one."""
        return self.safety_identifier or self.user

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens to tell of beside each sampled one; None: not even of that."""
        return self.top_logprobs if self.logprobs else None

    @property
    def opens_answer(self) -> bool:
        """Whether the prompt goes on to where an answer begins."""
        return not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt

    @model_validator(mode="after")
    def _calls_may_come(self) -> Self:
        """What bounds tokens may leave a call that is held to something none to choose."""
        self.check_demand_alone(
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            allowed_token_ids=self.allowed_token_ids is not None,
            bad_words=self.bad_words,
        )
        return self

    @property
    def is_held(self) -> bool:
        """Whether the answer must have a form or call a tool."""
        return bool(self.demanded) or self.grammar is not None

    @property
    def continues_answer(self) -> bool:
        """Whether the prompt ends within an answer."""
        return self.continue_final_message and bool(self.messages[-1].text)

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.max_tokens is not None and self.output_limit != self.max_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        return self

    @model_validator(mode="after")
    def _fields_go_together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs may only be given with logprobs: true")
        if self.safety_identifier and self.user and self.safety_identifier != self.user:
            raise ValueError("user and safety_identifier differ; give one of them")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt exclude each other; give one of them")
        return self


class CompletionRequest(GenerationBody):
    """Body of POST /v1/completions."""

    moot: ClassVar[Moot] = COMPLETION
    prompt: Prompt
    max_tokens: Index | None = None  # 0: the prompt is scored, or echoed, and nothing comes after it
    add_special_tokens: bool = True  # those that the tokenizer puts around a text; token ids are left alone
    logprobs: Few | None = None
    echo: bool = False
    best_of: Count | None = None  # as many as n: all are the best

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens to tell of beside each sampled one; None: not even of that."""
        return self.logprobs

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts one by one, whichever form they came in."""
        return [self.prompt] if self._is_single else self.prompt  # type: ignore[list-item, return-value]  # by its shape

    def name_of(self, index: int) -> str:
        """What to call a prompt when refusing it: `prompt`, or `prompt.3` of several."""
        return "prompt" if self._is_single else f"prompt.{index}"

    @property
    def _is_single(self) -> bool:
        return isinstance(self.prompt, str) or isinstance(self.prompt[0], int)

    @model_validator(mode="after")
    def _all_are_the_best(self) -> Self:
        if self.best_of is not None and self.best_of != self.n:
            raise ValueError("best_of: only as many as n may be generated; leave it out")
        return self

    @model_validator(mode="after")
    def _choices_are_bounded(self) -> Self:
        if (num_choices := len(self.prompts) * self.n) > MOST_CHOICES:
            raise ValueError(
                f"n: {num_choices} choices (prompts x n) are more than {MOST_CHOICES}; send fewer at a time"
            )
        return self
