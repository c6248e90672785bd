"""A question asked once for all who ask it at a time, and again when its answer is old."""

import asyncio

import pytest

from glm_cluster.deploy.shared_answer import SharedAnswer


class Question:
    """Answers with how often it was asked, once it may."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.now = 0.0

    async def ask(self) -> int:
        self.num_asked += 1
        await self.may_answer.wait()
        return self.num_asked

    def clock(self) -> float:
        return self.now


@pytest.fixture
async def question() -> Question:
    return Question()


@pytest.fixture
def shared(question: Question) -> SharedAnswer[int]:
    return SharedAnswer(question.ask, kept_s=1.0, clock=question.clock)


async def test_many_ask_once(question: Question, shared: SharedAnswer[int]) -> None:
    question.may_answer.clear()
    asking = [asyncio.create_task(shared.get()) for _ in range(100)]
    await asyncio.sleep(0)
    question.now = 5.0  # however long it takes
    asking += [asyncio.create_task(shared.get()) for _ in range(100)]
    question.may_answer.set()
    assert await asyncio.gather(*asking) == [1] * 200


@pytest.mark.parametrize(("later", "answer"), [(0.0, 1), (0.99, 1), (1.0, 2), (60.0, 2)])
async def test_an_answer_is_kept_for_a_while(
    question: Question, shared: SharedAnswer[int], later: float, answer: int
) -> None:
    assert await shared.get() == 1
    question.now += later
    assert await shared.get() == answer


async def test_who_goes_away_takes_the_answer_from_nobody(question: Question, shared: SharedAnswer[int]) -> None:
    question.may_answer.clear()
    first, second = asyncio.create_task(shared.get()), asyncio.create_task(shared.get())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    question.may_answer.set()
    assert await second == 1


async def test_an_error_is_everybodys_and_not_kept(question: Question) -> None:
    async def fail() -> int:
        await question.ask()
        raise ZeroDivisionError

    failing: SharedAnswer[int] = SharedAnswer(fail, kept_s=1.0, clock=question.clock)
    for _ in range(2):
        ends = await asyncio.gather(failing.get(), failing.get(), return_exceptions=True)
        assert [type(end) for end in ends] == [ZeroDivisionError] * 2
    assert question.num_asked == 2
