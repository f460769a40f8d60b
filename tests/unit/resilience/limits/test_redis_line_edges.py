"""The line in front of a shared limit, and the news for Redis."""

from __future__ import annotations

import pytest

from shared.infrastructure.resilience.limits.redis_line import Line, News


async def test_the_cost_of_a_line_is_that_of_those_in_it() -> None:
    line = Line()
    first, second = (line.join(cost, 5.0) for cost in (0.1, 0.2))
    assert line.queued_cost == pytest.approx(0.3)
    assert line.leave(first)
    assert line.queued_cost == pytest.approx(0.2)
    assert not line.leave(first)
    assert line.leave(second)
    assert line.queued_cost == 0.0


async def test_only_whoever_stands_at_the_front_is_first() -> None:
    line = Line()
    first, second = (line.join(1.0, 5.0) for _ in range(2))
    assert [line.is_first(first), line.is_first(second)] == [True, False]
    line.leave(first)
    assert [line.is_first(first), line.is_first(second)] == [False, True]


async def test_an_error_is_for_each_who_still_waits() -> None:
    line = Line()
    cancelled, *waiting = (line.join(1.0, 5.0) for _ in range(3))
    cancelled.cancel()
    line.fail(lambda: RuntimeError("no answer"))
    errors = [future.exception() for future in waiting]
    assert [str(error) for error in errors] == ["no answer"] * 2
    assert errors[0] is not errors[1]
    assert len(line) == 0


@pytest.mark.parametrize(
    ("news", "words"),
    [
        (News(), [0.0, 0.0, 0, 0]),
        (News(leave=True), [0.0, 0.0, 0, 0]),
        (News(debt=1.5, owed=2.5), [1.5, 2.5, 0, 0]),
        (News(pause=True), [0.0, 0.0, 3_000_000, 0]),
        (News(refunds=[(1.0, 7.0), (2.0, 8.0)]), [0.0, 0.0, 0, 2, 1.0, 7.0, 2.0, 8.0]),
    ],
)
def test_news_are_worth_telling_unless_there_are_none(news: News, words: list[object]) -> None:
    assert bool(news) is (news != News())
    assert news.words(2.9999999) == words
