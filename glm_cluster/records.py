"""The frozen records that flow between components. Knows no torch, no Ray, no wire format."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]
"""stop: a stop token was sampled; length: max_tokens or the model's limit; cancelled: the client went away."""

Task: TypeAlias = Literal["generate", "classify", "classify-tokens", "embed"]
"""What a served model does; all but the first answer a prompt with numbers (an `EncodeRequest`)."""

Pooling: TypeAlias = Literal["last", "mean", "tokens"]
"""Of which tokens an encoded prompt has rows: its last one, the mean of all, or each."""


Quantization: TypeAlias = Literal["none", "int8"]
"""In what a CPU multiplies: the model's dtype, or bytes with a scale for each row of weights and for each token."""

ToolParser: TypeAlias = Literal["auto", "glm4", "glm45", "glm47", "none"]
"""As what tool calls a model's text is read; auto: told from the checkpoint; none: they stay text."""

ReasoningParser: TypeAlias = Literal["auto", "think", "none"]
"""What of a model's text is reasoning. think: what stands between <think> and </think>; auto: so if its template
knows the tags."""

SamplingSource: TypeAlias = Literal["model", "openai"]
"""Whose way of sampling a request gets that leaves it open: the checkpoint's, where it has one, or OpenAI's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to turn logits into tokens. Validated at the wire; the engine trusts it.

    temperature 0 is greedy. `None` switches a filter off. Position p of a sequence draws its random number from
    (seed, p) alone, and everything else here is a function of the tokens so far, so a request can be re-entered
    anywhere. Penalties as OpenAI's (over the output) and, `repetition_penalty`, HF's (over prompt and output).
    """

    max_tokens: int  # 0: none, the prompt is all that is asked about
    min_tokens: int = 0  # of output, before which no stop token is sampled
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int = 0  # 0 <= seed < 2**63
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit)
    allowed_token_ids: tuple[int, ...] | None = None  # None: all
    bad_words: tuple[tuple[int, ...], ...] = ()  # ids that never follow one another in the output
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None  # None: none; 0: the sampled token's; k: those of the k likeliest too
    prompt_logprobs: int | None = None  # the same of the prompt's tokens
    grammar: "Grammar | None" = None


GrammarKind: TypeAlias = Literal["json", "json_schema", "loose_schema", "regex", "choice", "lark"]
"""json: any JSON object; json_schema: all that a schema says; loose_schema: what can be kept of it; choice: a JSON list
of strings, one of which is the text; lark: a context-free grammar."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the text of an output must match as a whole."""

    kind: GrammarKind
    source: str
    opens_line: bool = (
        False  # a line break comes first, as from models whose answers begin on the line after the role's
    )
    instead: str = ""  # a context-free grammar of what may come in its place, and without that line break


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request as an engine sees it: token ids in, token ids out.

    `output` holds the ids that an earlier attempt already emitted (re-entry): generation goes on after them, and
    `max_tokens` counts them. `attempt` tells the attempts of one request apart on the side channel. `max_drafts` bounds
    the tokens guessed in one step, which changes when tokens come and never which; None leaves it to the engine. Of the
    requests that wait, those of the lowest `priority` begin first. Only requests of one `cache_salt` share a prefix.
    """

    request_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    output: tuple[int, ...] = ()
    attempt: int = 0
    max_drafts: int | None = None
    priority: int = 0
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely the model found one token, before anything of `SamplingParams` changed that (natural logarithm)."""

    logprob: float
    rank: int  # 1: the likeliest
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob) of the likeliest, best first


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """New tokens of one request after one step. `start` is the index of tokens[0] in the request's output.

    Exactly one event of a request has `finish` set, and it is the last one. The stop token itself is the last of
    the output (finish "stop"); it is counted in usage and not shown as text. An encode request that is not cancelled
    has one event, without tokens: finish "stop" and the result.
    """

    request_id: str
    attempt: int
    start: int
    tokens: tuple[int, ...]
    finish: FinishReason | None = None
    num_cached_tokens: int = 0  # prompt tokens taken from the prefix cache
    encoded: "Encoded | None" = None  # of an encode request, with its `finish`
    logprobs: tuple[TokenLogprobs, ...] = ()  # one for each of `tokens`, where asked for
    # One for each token of the prompt, where asked for, with the first tokens; the first token has none.
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeRequest:
    """One prompt to run through a model that answers with numbers instead of tokens.

    What a row is depends on the model's task: label logits (classify, classify-tokens) or hidden states after the
    final norm (embed).
    """

    request_id: str
    prompt: tuple[int, ...]
    pooling: Pooling
    attempt: int = 0
    cache_salt: str | None = None  # only requests of one share a prefix


@dataclass(frozen=True, slots=True)
class Encoded:
    """The rows of an encoded prompt: [num_rows, width] float32, row by row, little endian."""

    num_rows: int
    width: int
    values: bytes
    num_cached_tokens: int = 0  # prompt tokens taken from the prefix cache


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoad:
    """What a replica tells the router about itself."""

    num_waiting: int
    num_running: int
    num_free_blocks: int
    num_blocks: int
    num_drafted: int = 0  # tokens guessed since its engine was made
    num_accepted: int = 0  # of them, those that were right


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What `SamplingParams` get where a request says nothing; these defaults are OpenAI's."""

    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What the front needs to know of a served model, read from its checkpoint without loading weights."""

    name: str
    vocab_size: int  # ids >= this are refused
    max_model_len: int  # prompt + output tokens
    eos_token_ids: tuple[int, ...]
    task: Task = "generate"
    labels: tuple[str, ...] = ()  # of a classifier, by index
    problem_type: str | None = None  # of a classifier: regression, single_label_classification, multi_label_...
    pad_token_id: int | None = None  # a classifier judges a text by its last token that is not this one
    created: int = field(default=0)  # unix seconds
    max_prompt_tokens: int | None = None  # of what the model could take, the most that the server's settings allow
    max_output_tokens: int | None = None
    sampling_defaults: SamplingDefaults = SamplingDefaults()


class Generator(Protocol):
    """Where the front meets the engine: the relay in a cluster, a fake in tests.

    Yields the events of one request in order without gap or overlap. Closing the iterator early cancels the request
    down to the engine.
    """

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]: ...


class Encoder(Protocol):
    """The same meeting place for models that answer with numbers. Cancelling the call cancels the request."""

    async def encode(self, request: EncodeRequest) -> Encoded: ...
