"""What a shared limiter tells Redis, and what it makes of each answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import pytest

from shared.infrastructure.resilience import (
    ConfigurationError,
    RateLimitExceededError,
    SlidingWindow,
    TokenBucket,
)
from shared.infrastructure.resilience.limits.redis_scripts import (
    SLIDING_WINDOW,
    TOKEN_BUCKET,
    Script,
)
from shared.infrastructure.testing import FakeClock
from tests.unit.resilience.limits.scripted_redis import (
    MS,
    NOW,
    Answer,
    ScriptedRedis,
    limiter_on,
    reply,
)

SECOND = 1000 * MS


def bucket(clock: FakeClock) -> TokenBucket:
    return TokenBucket(2.0, 10, clock=clock)


def window(clock: FakeClock) -> SlidingWindow:
    return SlidingWindow(10, 5.0, clock=clock)


@pytest.mark.parametrize(
    ("limit", "kind", "script"),
    [(bucket, "bucket", TOKEN_BUCKET), (window, "window", SLIDING_WINDOW)],
)
async def test_redis_is_told_the_limit_and_what_each_waiter_wants(
    limit: Callable[[FakeClock], TokenBucket | SlidingWindow], kind: str, script: Script
) -> None:
    clock, redis = FakeClock(), ScriptedRedis()
    limiter, other = (limiter_on(redis, limit(clock)) for _ in range(2))
    await limiter.acquire()
    await limiter.acquire(2.0, max_wait=0.5)
    assert await limiter.try_acquire(3.0)
    await other.reserve()
    assert limiter.name == "test"
    for question in redis.asked:
        assert question.script is script
        assert question.keys == (f"morgan:{kind}:{{test}}", f"morgan:{kind}:{{test}}:log")
        assert question.words[:2] == [SECOND / 2, 10.0]
        assert (question.news, question.refunds) == ([0.0, 0.0, 0], [])
    wishes = [wish for question in redis.asked for wish in question.wishes]
    assert wishes == [(1.0, -1), (2.0, 500 * MS), (3.0, 0), (1.0, -1)]
    assert [question.line == redis.last.line for question in redis.asked] == [False] * 3 + [True]


async def test_one_question_asks_for_a_hundred_waiters_at_most() -> None:
    redis = ScriptedRedis()
    limiter = limiter_on(redis, bucket(FakeClock()))
    await asyncio.gather(*(limiter.acquire() for _ in range(102)))
    assert [len(question.wishes) for question in redis.asked] == [100, 2]


async def test_whose_time_has_passed_before_it_is_asked_for_takes_only_what_is_there() -> None:
    clock, redis = FakeClock(), ScriptedRedis()
    limiter = limiter_on(redis, bucket(clock))
    answer = redis.hold()
    first = asyncio.create_task(limiter.acquire())
    await clock.advance()
    late = asyncio.create_task(limiter.acquire(max_wait=1.0))
    await clock.advance(2.0)
    answer.set_result(reply(0))
    await asyncio.gather(first, late)
    assert redis.last.wishes == [(1.0, 0)]


@pytest.mark.parametrize(
    ("actual", "news", "refunds"),
    [(6.5, [2.5, 0.0, 0], []), (1.0, [0.0, 0.0, 0], [(3.0, NOW)])],
)
async def test_what_a_call_did_not_cost_is_told_and_so_is_what_it_cost_more(
    actual: float, news: list[float], refunds: list[tuple[float, float]]
) -> None:
    clock, redis = FakeClock(), ScriptedRedis()
    limiter = limiter_on(redis, bucket(clock))
    permit = await limiter.reserve(4.0)
    await limiter.reserve()
    permit.commit(actual)
    await clock.advance()
    assert (redis.last.news, redis.last.refunds, redis.last.wishes) == (news, refunds, [])
    assert limiter.snapshot()["granted"] == actual + 1.0


async def test_a_call_that_cost_what_was_estimated_is_told_nobody() -> None:
    clock, redis = FakeClock(), ScriptedRedis()
    limiter = limiter_on(redis, bucket(clock))
    (await limiter.reserve(4.0)).commit()
    await clock.advance()
    assert len(redis.asked) == 1


async def test_what_was_granted_last_is_given_back_one_permit_by_default() -> None:
    clock, redis = FakeClock(), ScriptedRedis(reply(0), reply(0, now=NOW + 7))
    limiter = limiter_on(redis, bucket(clock))
    limiter.refund()  # of nothing
    await clock.advance()
    assert redis.asked == []
    await limiter.acquire(3.0)
    await limiter.acquire(2.0)
    limiter.refund()
    await clock.advance()
    assert redis.last.refunds == [(1.0, NOW + 7)]


@pytest.mark.parametrize(("seconds", "told"), [(2.0, 1500 * MS), (0.25, 0)])
async def test_a_pause_is_told_once_with_what_is_left_of_it(seconds: float, told: int) -> None:
    clock, redis = FakeClock(), ScriptedRedis()
    limiter = limiter_on(redis, bucket(clock))
    answer = redis.hold()
    call = asyncio.create_task(limiter.acquire())
    await clock.advance()
    limiter.pause(seconds)
    await clock.advance(0.5)
    answer.set_result(reply(0))
    await call
    await clock.advance()
    assert redis.last.news == [0.0, 0.0, told]
    await limiter.acquire()
    assert redis.last.news == [0.0, 0.0, 0]


async def test_a_pause_that_is_none_or_shorter_than_the_one_in_force_changes_nothing() -> None:
    clock, redis = FakeClock(), ScriptedRedis()
    limiter = limiter_on(redis, bucket(clock))
    for seconds in (0.0, -1.0, math.nan):
        limiter.pause(seconds)
        await clock.advance()
    assert redis.asked == []
    limiter.pause(5.0)
    await clock.advance()
    limiter.pause(5.0)
    limiter.pause(2.0)
    await clock.advance()
    assert len(redis.asked) == 1
    assert limiter.snapshot()["paused_for"] == 5.0


async def test_a_snapshot_says_what_was_last_heard_and_what_this_process_did() -> None:
    redis = ScriptedRedis(reply(0, used=250_000), reply(SECOND, used=250_000))
    limiter = limiter_on(redis, bucket(FakeClock()))
    await limiter.acquire(3.0)
    assert not await limiter.try_acquire()
    assert limiter.snapshot() == {
        "utilization": 0.25,
        "capacity": 10.0,
        "waiting": 0,
        "granted": 3.0,
        "refused_count": 1,
        "paused_for": 0.0,
        "shared": True,
    }


async def test_the_use_last_heard_of_falls_at_the_rate_of_the_limit() -> None:
    clock, redis = FakeClock(), ScriptedRedis(reply(0, used=250_000), reply(0, used=1_500_000))
    limiter = limiter_on(redis, bucket(clock))
    assert limiter.utilization == 0.0
    await limiter.acquire()
    seen: list[float] = []
    for _ in range(3):
        await clock.advance(0.5)
        seen.append(limiter.utilization)
    assert seen == pytest.approx([0.15, 0.05, 0.0])
    await limiter.acquire()
    assert limiter.utilization == 1.0  # in debt


@pytest.mark.parametrize(("answer", "seconds"), [(1500 * MS, 1.5), (1, 1e-6)])
async def test_a_refusal_says_how_far_away_the_permit_is(answer: int, seconds: float) -> None:
    limiter = limiter_on(ScriptedRedis(reply(answer)), bucket(FakeClock()))
    with pytest.raises(RateLimitExceededError) as refused:
        await limiter.acquire(max_wait=1.0)
    assert refused.value.retry_after == seconds


@pytest.mark.parametrize(("paused", "seconds"), [(2 * SECOND, 2.0), (1, 1e-6), (0, 5.0)])
async def test_a_pause_that_redis_knows_of_replaces_ours(paused: int, seconds: float) -> None:
    clock, redis = FakeClock(0.0), ScriptedRedis()
    limiter = limiter_on(redis, bucket(clock))
    answer = redis.hold()
    call = asyncio.create_task(limiter.acquire())
    await clock.advance()
    limiter.pause(5.0)
    answer.set_result(reply(0, paused=paused))
    await call
    assert limiter.snapshot()["paused_for"] == seconds


async def test_a_permit_in_advance_is_granted_at_its_instant_without_another_question() -> None:
    clock, redis = FakeClock(), ScriptedRedis(reply(place=40 * MS))
    limiter = limiter_on(redis, bucket(clock))
    call = asyncio.create_task(limiter.reserve())
    await clock.advance(0.0399)
    assert not call.done()
    await clock.advance(0.0002)
    assert (len(redis.asked), clock.pending) == (1, 0)
    (await call).cancel()
    await clock.advance()
    assert redis.last.refunds == [(1.0, NOW + 40 * MS)]


@pytest.mark.parametrize(
    ("turn", "seconds"),
    [(10 * SECOND, 1.0), (500 * MS, 0.475), (25 * MS, 0.025), (20 * MS, 0.02)],
)
async def test_a_line_that_queues_asks_each_second_and_a_little_before_its_turn(
    turn: int, seconds: float
) -> None:
    clock, redis = FakeClock(0.0), ScriptedRedis(reply(turn=turn))
    limiter = limiter_on(redis, bucket(clock))
    call = asyncio.create_task(limiter.acquire())
    await clock.advance(seconds - 0.001)
    assert (len(redis.asked), clock.pending) == (1, 1)
    await clock.advance(0.002)
    assert (len(redis.asked), clock.pending) == (2, 0)
    await call


async def test_whoever_can_have_its_turn_in_time_joins_and_nobody_else() -> None:
    clock, redis = FakeClock(0.0), ScriptedRedis(reply(turn=2 * SECOND))
    limiter = limiter_on(redis, bucket(clock))
    calls = [asyncio.create_task(limiter.acquire(max_wait=wait)) for wait in (None, 2.4, 2.5, None)]
    await clock.advance()
    with pytest.raises(RateLimitExceededError) as refused:  # waited for the same answer
        await calls[1]
    assert refused.value.retry_after == 2.5
    with pytest.raises(RateLimitExceededError) as refused:  # comes when the turn is known
        await limiter.acquire(max_wait=3.4)
    assert refused.value.retry_after == 3.5
    calls.append(asyncio.create_task(limiter.acquire(max_wait=3.5)))
    await clock.advance()
    assert limiter.snapshot()["waiting"] == 4


async def queued(
    answer: Answer, *costs: float
) -> tuple[FakeClock, ScriptedRedis, list[asyncio.Task[None]]]:
    """Return waiters in a line that has been given `answer`, and nothing since."""
    clock, redis = FakeClock(), ScriptedRedis(answer)
    limiter = limiter_on(redis, bucket(clock))
    calls = [asyncio.create_task(limiter.acquire(cost)) for cost in costs]
    await clock.advance()
    assert len(redis.asked) == 1
    return clock, redis, calls


PLACE, TURN = reply(place=40 * MS), reply(turn=SECOND)
TAKEN = (1.0, NOW + 40 * MS)


@pytest.mark.parametrize(
    ("answer", "costs", "refunds", "wishes"),
    [
        pytest.param(TURN, (1.0, 1.0), [], [(1.0, -1)], id="the next one asks for its turn"),
        pytest.param(TURN, (1.0,), [], [], id="nobody is left: the line is taken off"),
        pytest.param(PLACE, (1.0, 2.0), [TAKEN], [(2.0, -1)], id="the next one wants more"),
        pytest.param(PLACE, (1.0,), [TAKEN], [], id="nobody is left: the permit goes back"),
    ],
)
async def test_a_head_that_leaves_gives_up_its_turn(
    answer: Answer,
    costs: tuple[float, ...],
    refunds: list[tuple[float, float]],
    wishes: list[tuple[float, int]],
) -> None:
    clock, redis, calls = await queued(answer, *costs)
    calls[0].cancel()
    await clock.advance()
    assert (len(redis.asked), clock.pending) == (2, 0)
    assert (redis.last.refunds, redis.last.wishes) == (refunds, wishes)


async def test_a_permit_in_advance_passes_to_the_next_who_wants_as_much() -> None:
    clock, redis, calls = await queued(PLACE, 1.0, 1.0)
    calls[0].cancel()
    await clock.advance(0.041)
    await calls[1]
    assert len(redis.asked) == 1


async def test_who_leaves_from_behind_is_told_nobody() -> None:
    clock, redis, calls = await queued(TURN, 1.0, 1.0)
    calls[1].cancel()
    await clock.advance()
    assert (len(redis.asked), clock.pending) == (1, 1)


async def test_who_left_before_it_is_refused_leaves_nothing_to_tell() -> None:
    clock, redis = FakeClock(), ScriptedRedis()
    limiter = limiter_on(redis, bucket(clock))
    answer = redis.hold()
    call = asyncio.create_task(limiter.acquire(max_wait=1.0))
    await clock.advance()
    call.cancel()
    await clock.advance()
    answer.set_result(reply(9 * SECOND))
    await clock.advance()
    assert len(redis.asked) == 1
    assert limiter.snapshot()["refused_count"] == 0


async def test_a_pause_gives_a_permit_in_advance_back_and_asks_anew() -> None:
    clock, redis = FakeClock(), ScriptedRedis(PLACE, reply(turn=SECOND, paused=SECOND))
    limiter = limiter_on(redis, bucket(clock))
    call = asyncio.create_task(limiter.acquire())
    await clock.advance()
    limiter.pause(1.0)
    await clock.advance(0.5)
    assert not call.done()
    assert len(redis.asked) == 2
    assert redis.last.news == [0.0, 0.0, SECOND]
    assert (redis.last.refunds, redis.last.wishes) == ([TAKEN], [(1.0, -1)])


async def test_what_is_told_in_between_asks_for_the_line_again() -> None:
    clock, redis = FakeClock(), ScriptedRedis(reply(0), TURN)
    limiter = limiter_on(redis, bucket(clock))
    permit = await limiter.reserve(5.0)
    call = asyncio.create_task(limiter.acquire())
    await clock.advance()
    permit.cancel()
    await call  # there is enough now
    assert (redis.last.refunds, redis.last.wishes) == ([(5.0, NOW)], [(1.0, -1)])
    assert clock.pending == 0
    await limiter.acquire()
    assert len(redis.asked) == 4


async def test_what_is_told_while_a_permit_in_advance_is_held_asks_for_nobody() -> None:
    clock, redis = FakeClock(), ScriptedRedis(reply(0), PLACE)
    limiter = limiter_on(redis, bucket(clock))
    permit = await limiter.reserve(2.0)
    call = asyncio.create_task(limiter.acquire())
    await clock.advance()
    permit.commit(3.0)
    await clock.advance(0.041)
    await call
    assert (len(redis.asked), redis.last.news, redis.last.wishes) == (3, [1.0, 0.0, 0], [])


@pytest.mark.parametrize("error", [ConfigurationError("no such user"), RuntimeError("a bug")])
async def test_an_error_is_raised_in_each_who_waits_and_the_next_call_asks_again(
    error: Exception,
) -> None:
    redis = ScriptedRedis(error)
    limiter = limiter_on(redis, bucket(FakeClock()))
    raised = await asyncio.gather(*(limiter.acquire() for _ in range(2)), return_exceptions=True)
    assert [(type(one), str(one)) for one in raised] == [(type(error), str(error))] * 2
    # Whose text is ours is told to each anew, lest they collect each other's tracebacks.
    assert (raised[0] is raised[1]) is isinstance(error, RuntimeError)
    await limiter.acquire()
    assert [len(question.wishes) for question in redis.asked] == [2, 1]


async def test_those_who_wait_are_not_cancelled_with_the_task_that_asks_for_them() -> None:
    clock, redis = FakeClock(), ScriptedRedis()
    limiter = limiter_on(redis, bucket(clock))
    redis.hold()
    call = asyncio.create_task(limiter.acquire())
    await clock.advance()
    assert limiter._talk is not None
    limiter._talk.cancel()
    await clock.advance()
    assert not call.done()
