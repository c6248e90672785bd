"""What is asked of a server beside the prompt, the same for each request of a round."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Greedy answers of at most `max_tokens`. A flag that is off sends no field at all."""

    max_tokens: int
    model: str | None = None  # None: the first that the server lists
    ignore_eos: bool = False  # for peers that know it
    return_token_ids: bool = False  # an event for each token, also where its text is not whole yet
