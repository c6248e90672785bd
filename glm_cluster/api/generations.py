"""From a validated request to what engines take: a generation for every choice of every prompt.

Knows a model's vocabulary and length. Refuses to know how a request came in, and how text becomes tokens.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TypeVar

from glm_cluster.api.openai import GenerationBody
from glm_cluster.api.reading import Reading
from glm_cluster.api.window import EncodeWindow
from glm_cluster.errors import ContextExceeded, InvalidRequest
from glm_cluster.records import GenerationRequest, Generator, Grammar, ModelInfo, SamplingParams
from glm_cluster.text.stops import StopStrings
from glm_cluster.text.tokenizer import Tokenizer

_NO_SEED = -1  # vLLM's; other seeds below 0 stand for the one that has their last 63 bits
MAX_PROMPT_LIKELIHOODS = 1 << 16  # of one request: what telling more of prompts would come to is megabytes

Ids = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request that passed every check. `generations` has `n` of each prompt, prompt after prompt."""

    generations: tuple[GenerationRequest, ...]
    generator: Generator
    tokenizer: Tokenizer
    window: EncodeWindow
    n: int = 1
    skip_newline: bool = False  # the answer begins with a line break that is not shown
    stops: StopStrings | None = None
    shows_stop: bool = False  # what ended the text is part of it
    told_stop_ids: frozenset[int] = frozenset()  # the client's own, which are told as the reason of the end
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    echoes: tuple[str, ...] = ()  # of each prompt the text that its choices begin with; none of any where not asked for
    tells_usage_so_far: bool = False
    reading: Reading | None = None  # None: all of an output is text
    user: str | None = None

    @property
    def prompts(self) -> tuple[Ids, ...]:
        """The ids of each prompt."""
        return tuple(generation.prompt for generation in self.generations[:: self.n])


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt's ids, and the name of the field that it came in."""

    ids: Ids
    param: str


def generations(
    info: ModelInfo,
    request_id: str,
    request: GenerationBody,
    prompts: Sequence[Prompt],
    *,
    bad_words: tuple[Ids, ...],
    prompt_logprobs: int | None,
    grammar: Grammar | None = None,
) -> tuple[GenerationRequest, ...]:
    """A generation for every choice, or InvalidRequest. The choices of a prompt differ in nothing but their seed."""
    _check_ids_of(info, request)
    kept = [_kept(info, request, prompt) for prompt in prompts]
    _check_likelihoods(prompt_logprobs, sum(len(prompt.ids) for prompt in kept) * request.n)
    seed = secrets.randbits(63) if request.seed in (None, _NO_SEED) else request.seed % 2**63
    made = []
    for prompt in kept:
        sampling = _sampling(info, request, prompt, bad_words, prompt_logprobs)
        for index in range(request.n):
            made.append(
                GenerationRequest(
                    request_id=request_id,
                    prompt=prompt.ids,
                    sampling=replace(sampling, seed=seed_of(seed, index), grammar=grammar),
                    max_drafts=request.prompt_lookup_num_tokens,
                    priority=request.priority,
                    cache_salt=request.cache_salt,
                )
            )
    if len(made) == 1:
        return (made[0],)
    return tuple(replace(one, request_id=f"{request_id}-{index}") for index, one in enumerate(made))


def seed_of(seed: int, index: int) -> int:
    """The seed of a prompt's choice: the request's own for the first, from which the others' follow."""
    if index == 0:
        return seed
    digest = blake2b(seed.to_bytes(8, "little") + index.to_bytes(8, "little"), digest_size=8, person=b"choice").digest()
    return int.from_bytes(digest, "little") >> 1


def stop_ids(info: ModelInfo, request: GenerationBody) -> tuple[Ids, frozenset[int]]:
    """The ids that end a generation, and which of them are the client's own."""
    models = () if request.ignore_eos else info.eos_token_ids
    return tuple(dict.fromkeys((*models, *request.stop_token_ids))), frozenset(request.stop_token_ids) - {*models}


def check_ids(info: ModelInfo, ids: Sequence[int], param: str) -> None:
    """Refuse ids that the model has no row for."""
    if (worst := max(ids, default=0)) >= info.vocab_size:
        raise InvalidRequest(f"{param}: no token id {worst}; ids go up to {info.vocab_size - 1}", param=param)


def _check_ids_of(info: ModelInfo, request: GenerationBody) -> None:
    check_ids(info, request.stop_token_ids, "stop_token_ids")
    check_ids(info, tuple(request.logit_bias), "logit_bias")
    check_ids(info, request.allowed_token_ids or (), "allowed_token_ids")


def _check_likelihoods(asked: int | None, num_tokens: int) -> None:
    if asked is not None and num_tokens * (asked + 1) > MAX_PROMPT_LIKELIHOODS:
        raise InvalidRequest(
            f"prompt_logprobs: {num_tokens} prompt tokens of all choices x {asked + 1} likelihoods are more than "
            f"{MAX_PROMPT_LIKELIHOODS}; ask for fewer, or of a shorter prompt",
            param="prompt_logprobs",
        )


def _sampling(
    info: ModelInfo, request: GenerationBody, prompt: Prompt, bad_words: tuple[Ids, ...], prompt_logprobs: int | None
) -> SamplingParams:
    max_tokens = _max_tokens(info, request, prompt)
    if request.min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens: {request.min_tokens} is more than the {max_tokens} that may come", param="min_tokens"
        )
    allowed, defaults = request.allowed_token_ids, info.sampling_defaults
    top_k = _asked(request.top_k, defaults.top_k)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        temperature=_asked(request.temperature, defaults.temperature),
        top_k=top_k if top_k is not None and top_k > 0 else None,
        top_p=_asked(request.top_p, defaults.top_p),
        min_p=_asked(request.min_p, defaults.min_p),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=_asked(request.repetition_penalty, defaults.repetition_penalty),
        logit_bias=tuple(request.logit_bias.items()),
        allowed_token_ids=None if allowed is None else tuple(dict.fromkeys(allowed)),
        bad_words=bad_words,
        stop_token_ids=stop_ids(info, request)[0],
        logprobs=request.num_logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _asked(value: T | None, default: T) -> T:
    return default if value is None else value


def _kept(info: ModelInfo, request: GenerationBody, prompt: Prompt) -> Prompt:
    """The prompt, cut to its last tokens where the client asks for that."""
    check_ids(info, prompt.ids, prompt.param)
    most = request.truncate_prompt_tokens
    if most is None:
        return prompt
    if most == -1:
        most = max(1, info.max_model_len - (request.output_limit or 1))
        most = min(most, info.max_prompt_tokens or most)
    return replace(prompt, ids=prompt.ids[-most:])


def _max_tokens(info: ModelInfo, request: GenerationBody, prompt: Prompt) -> int:
    """What the client asked for, or what the model's length leaves; refuse what does not fit."""
    if not prompt.ids:
        raise InvalidRequest(f"{prompt.param}: no tokens in it; send some text", param=prompt.param)
    check_prompt_limit(info, len(prompt.ids), prompt.param)
    asked = request.output_limit
    _check_length(info, prompt, num_answer=max(1, asked or 0, request.min_tokens))
    most = info.max_output_tokens or info.max_model_len
    if asked is not None and asked > most:
        raise InvalidRequest(f"max_tokens: {asked}; this server gives {most} at most", param="max_tokens")
    return min(info.max_model_len - len(prompt.ids), most) if asked is None else asked


def _check_length(info: ModelInfo, prompt: Prompt, *, num_answer: int) -> None:
    """Refuse a prompt that the least answer does not fit behind."""
    limit, num_prompt, place = info.max_model_len, len(prompt.ids), prompt.param.partition(".")[0]
    if num_prompt + num_answer > limit:
        fewer = f", or ask for {limit - num_prompt} tokens at most" if num_prompt < limit else ""
        raise ContextExceeded.of(
            num_prompt + num_answer,
            limit,
            parts=f"({num_prompt} in the {place}, {num_answer} in the completion)",
            advice=f"Shorten the {place}{fewer}",
            param=prompt.param,
        )


def check_prompt_limit(info: ModelInfo, num_tokens: int, param: str) -> None:
    """Refuse a prompt that the model could take and the server's settings do not."""
    if info.max_prompt_tokens is not None and num_tokens > info.max_prompt_tokens:
        raise InvalidRequest(
            f"{param}: {num_tokens} tokens; this server takes {info.max_prompt_tokens} at most; shorten or split it",
            param=param,
        )
