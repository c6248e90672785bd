"""How likely tokens were, in the forms that OpenAI's and vLLM's clients read. Knows JSON's shapes, no requests."""

from collections.abc import Sequence
from typing import TypeAlias

from typing_extensions import TypedDict

from glm_cluster.api.answers import Likelihood, Place

LOWEST = -9999.0  # JSON has no minus infinity; OpenAI's own stand-in


class Alternative(TypedDict):
    """One token and how likely it was. `bytes` are exact where `token`, half a character, cannot be."""

    token: str
    logprob: float
    bytes: Sequence[int]


class ChatPlace(Alternative):
    """One token of a chat's answer."""

    top_logprobs: Sequence[Alternative]


class ChatLogprobs(TypedDict):
    """A chat's form."""

    content: Sequence[ChatPlace]


class TextLogprobs(TypedDict):
    """A completion's form: columns."""

    tokens: Sequence[str]
    token_logprobs: Sequence[float | None]
    top_logprobs: Sequence[dict[str, float] | None]
    text_offset: Sequence[int]


class Ranked(TypedDict):
    """One token of a prompt, by its id."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs: TypeAlias = Sequence[dict[str, Ranked] | None]


def chat_logprobs_body(places: Sequence[Place]) -> ChatLogprobs:
    """A token after the other, with the likeliest of each place."""
    return {"content": [_chat_place(place) for place in places]}


def text_logprobs_body(places: Sequence[Place]) -> TextLogprobs:
    """Columns; in `top_logprobs` the token itself stands beside the likeliest. A prompt's first token has none."""
    return {
        "tokens": [_shown(place.spelling) for place in places],
        "token_logprobs": [_logprob(place.likelihood) for place in places],
        "top_logprobs": [_by_text(place) for place in places],
        "text_offset": [place.offset for place in places],
    }


def prompt_logprobs_body(places: Sequence[Place]) -> PromptLogprobs:
    """For each token of a prompt but the first, the token's own likelihood and those of the likeliest."""
    return [_by_id(place) for place in places]


def finite(logprob: float) -> float:
    """A logarithm that every wire can carry."""
    return max(logprob, LOWEST)


def _chat_place(place: Place) -> ChatPlace:
    found = place.likelihood
    assert found is not None, "only a prompt's first token has no likelihood"
    return {**_alternative(found), "top_logprobs": [_alternative(one) for one in place.top]}


def _alternative(found: Likelihood) -> Alternative:
    return {"token": _shown(found.spelling), "logprob": finite(found.logprob), "bytes": list(found.spelling)}


def _logprob(found: Likelihood | None) -> float | None:
    return None if found is None else finite(found.logprob)


def _by_text(place: Place) -> dict[str, float] | None:
    if place.likelihood is None:
        return None
    found: dict[str, float] = {}
    for one in (*place.top, place.likelihood):  # two tokens may be shown alike: the likelier one stands
        found.setdefault(_shown(one.spelling), finite(one.logprob))
    return found


def _by_id(place: Place) -> dict[str, Ranked] | None:
    if place.likelihood is None:
        return None
    return {
        str(one.token_id): {
            "logprob": finite(one.logprob),
            "rank": one.rank,
            "decoded_token": _shown(one.spelling),
        }
        for one in (place.likelihood, *place.top)
    }


def _shown(spelling: bytes) -> str:
    return spelling.decode("utf-8", "replace")
