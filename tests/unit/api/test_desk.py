"""Grammars looked over for requests that wait, or wait no longer."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from glm_cluster.api import desk as desks
from glm_cluster.api.desk import KEPT, MAX_QUEUED, GrammarDesk
from glm_cluster.errors import InvalidRequest, Overloaded
from glm_cluster.records import Grammar
from glm_cluster.text.grammar.matcher import Matcher
from glm_cluster.text.grammar.vocabulary import Vocabulary


def word(index: int) -> Grammar:
    return Grammar("regex", f"hi{index}")


@pytest.fixture
def opened() -> Iterator[threading.Event]:
    """Set it to let the desk begin."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def desk(opened: threading.Event, monkeypatch: pytest.MonkeyPatch) -> Iterator[GrammarDesk]:
    class Held(Vocabulary):
        @classmethod
        def of_bytes(cls, control_tokens):
            assert opened.wait(60)
            return Vocabulary.of_bytes(control_tokens)

    monkeypatch.setattr(desks, "Vocabulary", Held)
    made = GrammarDesk(())
    yield made
    made.close()


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Grammar]:
    """The grammars that were compiled."""
    seen: list[Grammar] = []
    compiles = Matcher.compile

    def compile(grammar, vocabulary):
        seen.append(grammar)
        return compiles(grammar, vocabulary)

    monkeypatch.setattr(Matcher, "compile", compile)
    return seen


async def checks(desk: GrammarDesk, *grammars: Grammar) -> list[asyncio.Task[None]]:
    """So many waiters, each of whom waits by now."""
    tasks = [asyncio.create_task(desk.check(grammar, "guided_regex")) for grammar in grammars]
    await asyncio.sleep(0)
    return tasks


async def give_up(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_nobody_waits_for_any_more_is_not_compiled(desk, opened, begun) -> None:
    """Thirty clients that had gone were worked through before the next one."""
    await give_up(await checks(desk, *map(word, range(30))))
    opened.set()
    await desk.check(word(30), "guided_regex")
    assert begun == [word(30)]


async def test_a_grammar_is_compiled_for_whoever_still_waits(desk, opened, begun) -> None:
    first, second = await checks(desk, word(0), word(0))
    await give_up([first])
    opened.set()
    await second
    assert begun == [word(0)]


async def test_a_grammar_that_was_given_up_may_be_asked_for_again(desk, opened, begun) -> None:
    await give_up(await checks(desk, word(0)))
    (again,) = await checks(desk, word(0))
    opened.set()
    await again
    assert begun == [word(0)]


async def test_a_full_queue_takes_no_other_grammar(desk, opened, begun) -> None:
    tasks = await checks(desk, *map(word, range(MAX_QUEUED)))
    with pytest.raises(Overloaded) as refused:
        await desk.check(word(MAX_QUEUED), "guided_regex")
    assert refused.value.param == "guided_regex"
    tasks += await checks(desk, word(0))
    opened.set()
    await asyncio.gather(*tasks)
    assert begun == [word(index) for index in range(MAX_QUEUED)]
    await desk.check(word(MAX_QUEUED), "guided_regex")


async def test_who_waits_too_long_is_told_so(opened, desk, begun) -> None:
    desk._patience_s = 0.0
    with pytest.raises(Overloaded, match="too many"):
        await desk.check(word(0), "guided_regex")
    desk._patience_s = 60.0
    opened.set()
    await desk.check(word(1), "guided_regex")
    assert begun == [word(1)]


async def test_a_desk_that_closes_leaves_nobody_waiting(desk, opened) -> None:
    (task,) = await checks(desk, word(0))
    desk.close()
    with pytest.raises(Overloaded):
        await task


async def test_a_fault_is_told_with_its_field(desk, opened) -> None:
    opened.set()
    with pytest.raises(InvalidRequest, match=r"^guided_regex: ") as refused:
        await desk.check(Grammar("regex", "("), "guided_regex")
    assert refused.value.param == "guided_regex"


async def test_what_is_written_here_is_written_where_grammars_are_compiled(desk, opened) -> None:
    opened.set()
    assert await desk.write(threading.get_ident, "tools", b"") not in (threading.get_ident(), None)

    def refuses() -> None:
        raise InvalidRequest("tools: no", param="tools")

    with pytest.raises(InvalidRequest, match="tools: no"):
        await desk.write(refuses, "tools", b"no")


async def test_what_nobody_waits_for_any_more_is_not_written(desk, opened) -> None:
    written: list[int] = []
    gone = asyncio.create_task(desk.write(lambda: written.append(1), "tools", b"1"))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    opened.set()
    await desk.write(lambda: written.append(2), "tools", b"2")
    assert written == [2]


async def test_nothing_is_written_for_whoever_waits_too_long_or_in_a_full_queue(desk, opened) -> None:
    tasks = await checks(desk, *map(word, range(MAX_QUEUED)))
    with pytest.raises(Overloaded) as refused:
        await desk.write(list, "tools", b"")
    assert refused.value.param == "tools"
    await give_up(tasks)
    desk._patience_s = 0.0
    with pytest.raises(Overloaded):
        await desk.write(list, "tools", b"")


async def test_a_desk_that_closes_leaves_no_writer_waiting(desk, opened) -> None:
    task = asyncio.create_task(desk.write(list, "tools", b""))
    await asyncio.sleep(0)
    desk.close()
    with pytest.raises(Overloaded):
        await task


async def test_writers_count_in_the_queue(desk, opened) -> None:
    keys = [str(index).encode() for index in range(MAX_QUEUED)]
    tasks = [asyncio.create_task(desk.write(list, "tools", key)) for key in keys]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await desk.write(list, "tools", b"one more")
    with pytest.raises(Overloaded):
        await desk.check(word(0), "guided_regex")
    for task in tasks[1:]:
        task.cancel()
    await asyncio.gather(*tasks[1:], return_exceptions=True)
    opened.set()
    await desk.check(word(0), "guided_regex")
    assert await tasks[0] == []
    assert desk._workshop.num_wanted == 0


async def test_what_was_written_before_waits_for_nobody(desk, opened) -> None:
    opened.set()
    first = await desk.write(object, "tools", b"a")
    stuck, begun = threading.Event(), threading.Event()
    busy = asyncio.create_task(desk.write(lambda: (begun.set(), stuck.wait(60)), "tools", b"b"))
    await asyncio.to_thread(begun.wait, 60)
    assert await asyncio.wait_for(desk.write(object, "tools", b"a"), 60) is first
    stuck.set()
    await busy
    assert await desk.write(object, "tools", b"c") is not first


async def test_what_was_written_long_ago_is_forgotten_and_a_refusal_at_once(desk, opened) -> None:
    opened.set()
    first = await desk.write(object, "tools", b"a")
    for index in range(KEPT):
        await desk.write(object, "tools", str(index).encode())
    assert await desk.write(object, "tools", b"a") is not first
    with pytest.raises(ZeroDivisionError):
        await desk.write(lambda: 1 // 0, "tools", b"no")
    assert await desk.write(list, "tools", b"no") == []
