"""The served models, and from a validated request to pieces of text, for every wire alike.

Knows the models' names, tasks, vocabularies and lengths. Refuses to know how a request came in or how its answer goes
out, and how models answer that give numbers instead of text.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from glm_cluster.api.answers import Delta, Usage
from glm_cluster.api.choices import choice_deltas, count_tokens
from glm_cluster.api.demand import Held, held_form, held_key, held_output
from glm_cluster.api.desk import GrammarDesk
from glm_cluster.api.generations import Prepared, Prompt, generations, stop_ids
from glm_cluster.api.openai import ChatCompletionRequest, CompletionRequest, GenerationBody, Message
from glm_cluster.api.reading import Reading
from glm_cluster.api.thinking import Effort, told
from glm_cluster.api.tools import MAX_PARAMETERS_BYTES
from glm_cluster.api.window import EncodeWindow
from glm_cluster.errors import ConfigError, InvalidRequest, ModelNotFound
from glm_cluster.metrics import Meters
from glm_cluster.records import (
    Encoder,
    Generator,
    Grammar,
    ModelInfo,
    Task,
)
from glm_cluster.text.chat import VARIABLES, ChatTemplate, model_opens_line
from glm_cluster.text.stops import StopStrings
from glm_cluster.text.tokenizer import Segment, Tokenizer
from glm_cluster.text.tools.conversation import conversation
from glm_cluster.text.tools.dialect import Dialect, dialect_of
from glm_cluster.text.tools.prompt import thinking_at_end, with_thinking_closed
from glm_cluster.text.tools.reasoning import State
from glm_cluster.text.tools.tool import Tool

T = TypeVar("T")
_MESSAGE_BYTES = 64  # what a message costs to render besides its text
_TOKEN_BYTES = 16  # what a token costs to decode, and a character of a stop string to prepare for
_WAYS: dict[Task, str] = {
    "generate": "POST /v1/chat/completions or /v1/completions (gRPC: Chat, ChatStream, Generate)",
    "classify": "POST /v1/classify (gRPC: Classify)",
    "classify-tokens": "POST /v1/classify_tokens (gRPC: ClassifyTokens)",
    "embed": "POST /v1/embeddings (gRPC: Embed)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model and what it takes to serve it. A model has the one of `generator` and `encoder` that its task needs."""

    info: ModelInfo
    tokenizer: Tokenizer
    template: ChatTemplate | None  # None: its checkpoint has none, and it answers no conversations
    window: EncodeWindow  # over the same tokenizer
    dialect: Dialect | None = None  # None: as the template says
    desk: GrammarDesk | None = None  # None: it follows no grammars
    generator: Generator | None = None
    encoder: Encoder | None = None

    @property
    def speech(self) -> Dialect:
        """How the model takes tools in and writes calls out."""
        return self.dialect or dialect_of("" if self.template is None else self.template.source, ())

    def __post_init__(self) -> None:
        """Refuse what could answer no request."""
        name, labels = self.info.name, self.info.labels
        if (self.generator if self.info.task == "generate" else self.encoder) is None:
            raise ConfigError(f"{name}: nothing runs its task {self.info.task!r}; give it an engine of that task")
        if not labels and self.info.task in ("classify", "classify-tokens"):
            raise ConfigError(f"{name}: a classifier needs labels; give its config.json an id2label")
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ConfigError(f"{name}: labels {twice} stand twice in its id2label; name each index differently")


class Service:
    """The served models. `prepare_*` refuses a request or makes of it what an engine takes; `stream` runs it."""

    def __init__(self, *, models: Sequence[ServedModel], meters: Meters) -> None:
        self._models = {model.info.name: model for model in models}
        if len(self._models) < len(models) or not models:
            raise ConfigError(f"served models must have different names, not {[model.info.name for model in models]}")
        self._meters = meters

    @property
    def infos(self) -> list[ModelInfo]:
        """What is served, in the order of the configuration."""
        return [model.info for model in self._models.values()]

    def named(self, name: str) -> ServedModel:
        """The model of that name; refused if there is none."""
        if (found := self._models.get(name)) is None:
            served = ", ".join(map(repr, self._models))
            raise ModelNotFound(f"no model {name!r} here; this cluster serves {served}", param="model")
        return found

    def model(self, name: str, task: Task) -> ServedModel:
        """The model of that name; refused if there is none, or if it does something else than `task`."""
        found = self.named(name)
        if found.info.task != task:
            raise InvalidRequest(
                f"model: {name!r} is served for another task, {found.info.task!r}; ask it by {_WAYS[found.info.task]}",
                param="model",
            )
        return found

    async def read(self, parse: Callable[[], T], *, size_bytes: int) -> T:
        """What `parse` makes of a request, on another thread if the request is long."""
        anyone = next(iter(self._models.values()))  # before it is parsed, nobody knows which model it is for
        return await anyone.window.off_loop(parse, size_bytes=size_bytes)

    async def prepare_chat(self, request_id: str, request: ChatCompletionRequest) -> Prepared:
        """Render and tokenise a conversation; refuse what its model can never answer."""
        model = self.model(request.model, "generate")
        options = {
            "add_generation_prompt": request.opens_answer,
            "continue_final_message": request.continue_final_message,
        }
        rendered = await self.rendered(
            model,
            request.messages,
            request.variables,
            tools=request.offered,
            effort=request.reasoning_effort,
            closes_thinking=request.is_held and not request.continues_answer,
            **options,
        )
        prompt = Prompt(ids=await model.window.encode(rendered), param="messages")
        speech, specials = model.speech, model.tokenizer.special_ids
        thinking, opens_line = thinking_at_end(rendered, specials), model_opens_line(rendered)
        if request.continues_answer and thinking == "before":
            thinking = "after"  # an answer that has begun is past its reasoning
        state = thinking if speech.thinks else None
        held = await _held(model, request, specials, thinking=state, opens_line=opens_line)
        reading = Reading(
            dialect=speech,
            tools=speech.understood(request.offered),
            thinking=thinking,
            certain=held is not None and held.certain,
            at_once=held is not None and held.at_once,
            parallel=request.parallel_tool_calls,
            skip_newline=opens_line,
        )
        return await _prepared(model, request_id, request, [prompt], reading=reading, held=held)

    async def rendered(
        self,
        model: ServedModel,
        messages: Sequence[Message],
        variables: Mapping[str, object] = MappingProxyType({}),
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Tool] = (),
        effort: Effort | None = None,
        closes_thinking: bool = False,
    ) -> tuple[Segment, ...]:
        """A conversation in the model's chat template, made on another thread if it is long.

        `closes_thinking`: so that the model answers without reasoning, whatever its template knows.
        """
        if (template := model.template) is None:
            raise InvalidRequest(
                f"model: {model.info.name!r} has no chat template; send a prompt, as POST /v1/completions takes it "
                "(gRPC: Generate)",
                param="model",
            )
        dialect = model.speech
        said_of_it = told(template, variables, effort, thinks=dialect.thinks)
        begins_answer = not messages[-1].text if continue_final_message else add_generation_prompt
        closes_thinking = closes_thinking or (said_of_it.closes and begins_answer)
        specials = model.tokenizer.special_ids

        def render() -> tuple[Segment, ...]:
            said = conversation([message.turn for message in messages], tools, dialect)
            prompt = template.render(
                said.messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables={**VARIABLES, **said_of_it.variables, **said.variables},
            )
            if closes_thinking and dialect.thinks:
                return with_thinking_closed(prompt, specials, dialect.family)
            return prompt

        size_bytes = sum(_MESSAGE_BYTES + message.size_bytes for message in messages)
        return await model.window.off_loop(render, size_bytes=size_bytes + MAX_PARAMETERS_BYTES * len(tools))

    async def prepare_completion(self, request_id: str, request: CompletionRequest) -> Prepared:
        """Tokenise prompts unless they are ids already; refuse what their model can never continue."""
        model = self.model(request.model, "generate")
        texts = [prompt for prompt in request.prompts if isinstance(prompt, str)]
        before, after = model.tokenizer.frame if request.add_special_tokens else ((), ())
        encoded = iter(await _encoded(model, texts))
        prompts = [
            Prompt(
                ids=(*before, *next(encoded), *after) if isinstance(prompt, str) else tuple(prompt),
                param=request.name_of(index),
            )
            for index, prompt in enumerate(request.prompts)
        ]
        return await _prepared(model, request_id, request, prompts, held=held_form(request), echoes=request.echo)

    def stream(self, prepared: Prepared) -> AsyncGenerator[Delta, None]:
        """The choices piece by piece. Closing this generator cancels the request down to the engine."""
        return choice_deltas(prepared, self._meters)

    def count(self, usage: Usage) -> None:
        """Report what a request cost."""
        count_tokens(self._meters, usage)


async def _prepared(
    model: ServedModel,
    request_id: str,
    request: GenerationBody,
    prompts: Sequence[Prompt],
    *,
    reading: Reading | None = None,
    held: Held | None,
    echoes: bool = False,
) -> Prepared:
    assert model.generator is not None, "a model that generates has one"
    asked = [request.prompt_logprobs, request.num_logprobs if echoes else None]
    prompt_logprobs = max((few for few in asked if few is not None), default=None)
    num_bytes = _TOKEN_BYTES * sum(map(len, request.stop))
    stops = await model.window.off_loop(lambda: StopStrings(request.stop), size_bytes=num_bytes)
    bad_words = await _bad_words(model, request.bad_words)
    made = generations(
        model.info,
        request_id,
        request,
        prompts,
        bad_words=bad_words,
        prompt_logprobs=prompt_logprobs,
        grammar=None if held is None else await _grammar(model, held),
    )
    echoed = [generation.prompt for generation in made[:: request.n]] if echoes else []
    num_bytes = _TOKEN_BYTES * sum(map(len, echoed))
    texts = await model.window.off_loop(lambda: tuple(map(model.tokenizer.decode, echoed)), size_bytes=num_bytes)
    return Prepared(
        generations=made,
        generator=model.generator,
        tokenizer=model.tokenizer,
        window=model.window,
        n=request.n,
        skip_newline=reading is not None and reading.skip_newline,
        stops=stops if request.stop else None,
        shows_stop=request.include_stop_str_in_output,
        told_stop_ids=stop_ids(model.info, request)[1],
        num_logprobs=request.num_logprobs,
        num_prompt_logprobs=request.prompt_logprobs,
        echoes=texts,
        tells_usage_so_far=request.stream_options is not None and request.stream_options.continuous_usage_stats,
        reading=reading if reading is not None and reading.is_needed else None,
        user=request.asker,
    )


async def _held(
    model: ServedModel,
    request: ChatCompletionRequest,
    specials: Collection[str],
    *,
    thinking: State | None,
    opens_line: bool,
) -> Held | None:
    """What the output is held to, written where grammars are compiled if schemas of tools have a part in it."""

    def write() -> Held | None:
        return held_output(request, model.speech, specials, thinking=thinking, opens_line=opens_line)

    has_part = request.is_held or any(tool.strict for tool in request.offered)
    if model.desk is None or not request.offered or not has_part:
        return write()
    key = await model.window.off_loop(
        lambda: held_key(request, model.speech, thinking=thinking, opens_line=opens_line),
        size_bytes=MAX_PARAMETERS_BYTES * len(request.offered),
    )
    return await model.desk.write(write, "tools", key)


async def _grammar(model: ServedModel, held: Held) -> Grammar:
    """What the answers must match as a whole, looked over part by part, so that the field at fault is told."""
    for part, field in held.parts:
        if model.desk is None:
            raise InvalidRequest(f"{field}: {model.info.name!r} follows no form", param=field)
        await model.desk.check(part, field)
    return held.grammar


async def _bad_words(model: ServedModel, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The ids of each word, as it stands behind a space and as it stands at the beginning of a line."""
    spelled = [before + word.lstrip() for word in words for before in ("", " ")]
    return tuple(dict.fromkeys(await _encoded(model, spelled)))


async def _encoded(model: ServedModel, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """The ids of each text."""
    if len(texts) == 1:
        return [await model.window.encode(texts[0])]
    return list(await asyncio.gather(*map(model.window.encode, texts)))
