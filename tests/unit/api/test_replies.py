"""What it costs to tell what was asked for is known before it is told."""

import pytest

from glm_cluster.api.answers import ID_BYTES, LIKELIHOOD_BYTES, Delta, Likelihood, Place
from glm_cluster.api.messages import ChunkWriter
from glm_cluster.api.replies import CHAT, Asked, EventWriter, Head

PROMPT = tuple(range(100_000))
PLACE = Place(1, b"a", 0, Likelihood(1, b"a", -0.5, 1), ())


@pytest.mark.parametrize("token_ids", [True, False])
def test_ids_and_likelihoods_are_counted(token_ids: bool):
    asked = Asked(prompts=[PROMPT, (1,)], n=2, token_ids=token_ids)
    pieces = [Delta("a", (1, 2), places=(PLACE,)), Delta("b", (3,))]
    ids = ID_BYTES * (3 + 2 * len(PROMPT)) if token_ids else 0
    assert asked.size_bytes(pieces, num_prompts=2) == LIKELIHOOD_BYTES + ids


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_a_prompt_is_long_to_tell_in_a_choices_first_piece_alone(wire: str):
    asked, head = Asked(prompts=[PROMPT], n=2, token_ids=True), Head(id="r", model="m")
    http, grpc = EventWriter(CHAT, head, asked), ChunkWriter(head, asked)
    writer, write = (http, http.event) if wire == "http" else (grpc, grpc.chat)
    for index in (0, 1):
        first, second = Delta("a", (1,), index=index), Delta("b", (2,), index=index)
        assert writer.size_bytes(first) > ID_BYTES * len(PROMPT)
        write(first)
        assert writer.size_bytes(second) == ID_BYTES


def test_a_chats_stream_tells_of_its_prompt_once():
    writer = ChunkWriter(Head(id="r", model="m"), Asked(prompts=[(1,)], n=2, prompt_logprobs=True))
    told = [writer.chat(Delta("a", (1,), index=index, prompt_places=(PLACE,))) for index in (0, 1)]
    assert [len(chunk.prompt_logprobs) for chunk in told] == [1, 0]
