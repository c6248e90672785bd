"""Grammars compiled on another thread: who waits, who does not, and what is kept."""

import threading

import pytest
from support.tiny_text import tokenizer_json

from glm_cluster.errors import InternalError, InvalidRequest
from glm_cluster.records import Grammar
from glm_cluster.text.grammar.vocabulary import Vocabulary
from glm_cluster.text.grammar.workshop import KEPT, Workshop
from glm_cluster.text.tokenizer import Tokenizer

WORD = Grammar("regex", "hi")
_VOCABULARY = Vocabulary.of(Tokenizer(tokenizer_json()), stop_ids=(257,), vocab_size=300)


@pytest.fixture
def workshop():
    shop = Workshop(lambda: _VOCABULARY)
    yield shop
    shop.close()


def test_a_sequence_is_ready_once_its_grammar_is_compiled() -> None:
    may_open = threading.Event()

    def opens() -> Vocabulary:
        may_open.wait(60)
        return _VOCABULARY

    shop = Workshop(opens)
    following = shop.follow(WORD)
    following.wait(0)
    assert not following.is_ready
    may_open.set()
    following.wait(60)
    assert following.is_ready
    assert following.error is None
    shop.close()


def test_a_compiled_grammar_is_kept(workshop: Workshop) -> None:
    first = workshop.want(WORD)
    assert workshop.want(Grammar("regex", "hi")) is first
    for i in range(KEPT):
        workshop.want(Grammar("regex", f"hi{i}"))
    assert workshop.want(WORD) is not first


def test_followers_of_one_grammar_do_not_meet(workshop: Workshop) -> None:
    one, other = workshop.follow(WORD), workshop.follow(WORD)
    one.wait(60)
    before = other.allowed()
    one.take((104, 105))
    assert one.allowed() is not None
    assert (one.num_taken, other.num_taken) == (2, 0)
    assert (other.allowed() == before).all()  # type: ignore[union-attr]


def test_a_grammar_that_is_none_is_its_followers_error(workshop: Workshop) -> None:
    following = workshop.follow(Grammar("regex", "("))
    following.wait(60)
    assert following.is_ready
    assert isinstance(following.error, InvalidRequest)
    assert following.allowed() is None


def test_an_output_beside_its_grammar_is_one_followers_error(workshop: Workshop) -> None:
    following, other = workshop.follow(WORD), workshop.follow(WORD)
    following.wait(60)
    following.take((1,))
    assert following.allowed() is None
    assert isinstance(following.error, InternalError)
    following.take((2,))
    assert following.allowed() is None
    other.take((104,))
    assert other.allowed() is not None


def test_what_its_followers_have_left_is_not_compiled() -> None:
    """A client that had gone left an engine its grammar to compile, before those of whoever still waited."""
    may_open = threading.Event()

    def opens() -> Vocabulary:
        may_open.wait(60)
        return _VOCABULARY

    shop = Workshop(opens)
    gone, others = Grammar("regex", "gone"), [shop.follow(WORD) for _ in range(2)]
    left = [shop.follow(gone) for _ in range(2)]
    assert shop.num_wanted == 2
    for following in (*left, others[0]):
        following.leave()
    assert (shop.num_wanted, shop.has(gone), shop.has(WORD)) == (1, False, True)
    again = shop.follow(gone)
    may_open.set()
    for following in (others[1], again):
        following.wait(60)
        assert following.allowed() is not None
        following.leave()
    assert shop.num_wanted == 0
    assert shop.has(gone)
    shop.close()


def test_a_vocabulary_that_cannot_be_made_is_every_followers_error(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> Vocabulary:
        raise ValueError("no tokens")

    shop = Workshop(fails)
    following = shop.follow(WORD)
    following.wait(60)
    error = following.error if following.is_ready else None
    assert isinstance(error, InternalError)
    assert "no tokens" not in error.message
    assert "no tokens" in caplog.text
    shop.close()
