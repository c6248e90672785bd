"""Text to token ids and back, as a served model does it: what a client may ask, and the answers, for every wire alike.

Knows any model, whatever its task. Refuses to know how a request came in or how its answer goes out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from glm_cluster.api.fields import MAX_ITEMS
from glm_cluster.api.generations import check_ids
from glm_cluster.api.openai import Message
from glm_cluster.api.schema import Body, FirstFault, TokenIds, at_most
from glm_cluster.api.service import ServedModel, Service
from glm_cluster.api.thinking import TemplateFields
from glm_cluster.api.tools import Tools
from glm_cluster.api.window import EncodeWindow


class TokenizeRequest(TemplateFields, Body):
    """Body of POST /tokenize: a text, or a conversation to put into the model's chat template."""

    prompt: str | None = None
    messages: (
        Annotated[list[Message], Field(min_length=1), FirstFault(), BeforeValidator(at_most(MAX_ITEMS))] | None
    ) = None
    add_special_tokens: bool | None = None  # those the tokenizer puts around a text; None: around a prompt
    add_generation_prompt: bool | None = None  # None: unless the final message is to go on
    continue_final_message: bool = False
    tools: Tools = Field(default=[])
    return_token_strs: bool = False

    @property
    def opens_answer(self) -> bool:
        """Whether the conversation goes on to where an answer begins."""
        return not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        for name in ("add_generation_prompt", "continue_final_message", *TemplateFields.model_fields, "tools"):
            if self.messages is None and getattr(self, name) not in (None, False, {}, []):
                raise ValueError(f"{name} goes with messages; leave it out")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt exclude each other; give one of them")
        return self


class DetokenizeRequest(Body):
    """Body of POST /detokenize."""

    tokens: TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """A text's ids; `strings` are they as the vocabulary spells them. `window` is where to make long replies."""

    ids: Sequence[int]
    strings: Sequence[str] | None
    max_model_len: int
    window: EncodeWindow


async def tokenize(service: Service, request: TokenizeRequest) -> Tokenized:
    """The ids that the model would be given."""
    model = service.named(request.model)
    ids = await _ids(service, model, request)
    if request.add_special_tokens or (request.add_special_tokens is None and request.prompt is not None):
        before, after = model.tokenizer.frame
        ids = (*before, *ids, *after)
    strings = None
    if request.return_token_strs:
        strings = await model.window.off_loop(lambda: model.tokenizer.spellings(ids), size_bytes=4 * len(ids))
    return Tokenized(ids=ids, strings=strings, max_model_len=model.info.max_model_len, window=model.window)


async def _ids(service: Service, model: ServedModel, request: TokenizeRequest) -> tuple[int, ...]:
    if request.messages is None:
        assert request.prompt is not None, "the one or the other"
        return await model.window.encode(request.prompt)
    rendered = await service.rendered(
        model,
        request.messages,
        request.variables,
        add_generation_prompt=request.opens_answer,
        continue_final_message=request.continue_final_message,
        tools=[body.tool for body in request.tools],
        effort=request.reasoning_effort,
    )
    return await model.window.encode(rendered)


async def detokenize(service: Service, request: DetokenizeRequest) -> str:
    """The text of ids, control tokens written out."""
    model = service.named(request.model)

    def text() -> str:
        check_ids(model.info, request.tokens, "tokens")
        return model.tokenizer.spelt_out(request.tokens)

    return await model.window.off_loop(text, size_bytes=4 * len(request.tokens))
