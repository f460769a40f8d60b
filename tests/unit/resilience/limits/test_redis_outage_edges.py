"""What a shared limiter keeps to while Redis is away, and what it tells when Redis is back."""

from __future__ import annotations

import asyncio

import pytest

from shared.infrastructure.resilience import RateLimitExceededError, SlidingWindow, TokenBucket
from shared.infrastructure.resilience.limits.redis_scripts import TOKEN_BUCKET
from shared.infrastructure.resilience.limits.redis_store import StoreAwayError
from shared.infrastructure.testing import FakeClock
from tests.unit.resilience.limits.scripted_redis import (
    MS,
    ScriptedRedis,
    limiter_on,
    reply,
    store_on,
)

GONE = StoreAwayError("gone")


def lasting(clock: FakeClock) -> SlidingWindow:
    """Return a limit that gives nothing back in a test."""
    return SlidingWindow(10, 1000.0, clock=clock)


class Shared:
    """A limiter whose Redis can be lost and found."""

    def __init__(
        self,
        limit: SlidingWindow | None = None,
        meanwhile: TokenBucket | SlidingWindow | None = None,
        clock: FakeClock | None = None,
    ) -> None:
        self.clock = clock or FakeClock()
        self.redis = ScriptedRedis()
        limit = limit or lasting(self.clock)
        self.meanwhile = meanwhile or lasting(self.clock)
        self.store = store_on(self.redis, limit)
        self.limiter = limiter_on(self.redis, limit, meanwhile=self.meanwhile, store=self.store)

    async def lose(self) -> None:
        self.redis.answers.append(GONE)
        with pytest.raises(StoreAwayError):
            await self.store.run(TOKEN_BUCKET, (), ())
        assert not self.limiter.snapshot()["shared"]

    async def find(self) -> list[list[float]]:
        """Let half a second pass until Redis is back; return the news it is told."""
        before = len(self.redis.asked)
        self.redis.answers.append(reply())
        await self.clock.advance(self.store.config.retry_every)
        assert self.limiter.snapshot()["shared"]
        return [question.news for question in self.redis.asked[before:] if question.words]


@pytest.mark.parametrize(("used", "in_use"), [(700_000, 0.7), (100_000, 0.65)])
async def test_a_process_begins_as_full_as_the_limit_was_last_heard_of(
    used: int, in_use: float
) -> None:
    shared = Shared()
    shared.redis.answers.append(reply(0, used=used))
    await shared.limiter.acquire()
    assert shared.meanwhile.try_acquire(6.5)
    await shared.lose()
    assert shared.limiter.utilization == pytest.approx(in_use, abs=1e-3)


async def test_what_was_granted_without_redis_is_owed_once() -> None:
    shared = Shared()
    assert shared.meanwhile.try_acquire(2.0)  # by somebody else
    await shared.lose()
    await shared.limiter.acquire(2.0)
    (await shared.limiter.reserve(2.0)).commit(3.0)
    (await shared.limiter.reserve(2.0)).cancel()
    assert await shared.find() == [[0.0, 5.0, 0]]
    await shared.lose()
    await shared.limiter.acquire()
    assert await shared.find() == [[0.0, 1.0, 0]]
    await shared.lose()
    assert await shared.find() == []


async def test_what_nobody_took_makes_nothing_less_owed() -> None:
    shared = Shared()
    assert shared.meanwhile.try_acquire(2.0)  # by somebody else
    await shared.lose()
    shared.limiter.refund()
    await shared.limiter.acquire(2.0)
    await shared.limiter.acquire()
    assert await shared.find() == [[0.0, 3.0, 0]]


async def test_what_has_been_refilled_since_is_not_owed() -> None:
    clock = FakeClock()
    shared = Shared(meanwhile=TokenBucket(1.0, 10, clock=clock), clock=clock)
    await shared.lose()
    await shared.limiter.acquire(2.0)
    assert await shared.find() == [[0.0, pytest.approx(1.5), 0]]


@pytest.mark.parametrize("is_told", [False, True])
async def test_what_was_to_be_told_when_redis_was_lost_is_owed(is_told: bool) -> None:
    shared = Shared()
    redis, limiter = shared.redis, shared.limiter
    permits = [await limiter.reserve(1.0) for _ in range(2)]
    on_its_way = redis.hold()
    permits[0].cancel()
    await shared.clock.advance()
    await shared.lose()
    await limiter.acquire(3.0)
    assert await shared.find() == []  # not before the answer that is on its way
    permits[1].commit(5.0)
    if is_told:
        redis.answers.append(GONE)
        on_its_way.set_result(reply())
        await shared.clock.advance()
        assert redis.last.news == [4.0, 3.0, 0]
    else:
        await shared.lose()
        on_its_way.set_result(reply())
        await shared.clock.advance()
    assert shared.meanwhile.try_acquire(7.0)
    assert await shared.find() == [[0.0, 7.0, 0]]


@pytest.mark.parametrize(
    ("seconds", "told"), [(5.0, [[0.0, 0.0, 4500 * MS]]), (0.5, []), (0.25, [])]
)
async def test_what_is_left_of_a_pause_is_told_when_redis_is_back(
    seconds: float, told: list[list[float]]
) -> None:
    shared = Shared()
    shared.limiter.pause(seconds)
    await shared.clock.advance()
    await shared.lose()
    assert not await shared.limiter.try_acquire()
    assert await shared.find() == told


async def test_a_waiter_is_asked_for_as_soon_as_redis_is_back() -> None:
    shared = Shared()
    await shared.lose()
    assert shared.meanwhile.try_acquire(10.0)  # by somebody else
    call = asyncio.create_task(shared.limiter.acquire())
    await shared.clock.advance()
    assert await shared.find() == [[0.0, 0.0, 0]]
    await call
    assert shared.redis.last.wishes == [(1.0, -1)]
    assert shared.clock.pending == 0


async def test_a_line_that_a_refund_has_emptied_holds_up_nobody() -> None:
    shared = Shared()
    await shared.lose()
    permit = await shared.limiter.reserve(10.0)
    call = asyncio.create_task(shared.limiter.acquire())
    await shared.clock.advance()
    permit.cancel()
    await call
    assert shared.clock.pending == 1  # the look for Redis
    assert await shared.limiter.try_acquire(9.0)


async def test_whose_turn_is_in_time_by_the_limit_in_force_is_not_refused() -> None:
    clock = FakeClock()
    shared = Shared(SlidingWindow(1, 60.0, clock=clock), TokenBucket(10.0, 1, clock=clock), clock)
    await shared.lose()
    await shared.limiter.acquire()
    calls = [asyncio.create_task(shared.limiter.acquire(max_wait=0.3)) for _ in range(2)]
    await clock.advance(0.25)
    await asyncio.gather(*calls)
    with pytest.raises(RateLimitExceededError) as refused:
        await shared.limiter.acquire(max_wait=0.01)
    assert refused.value.retry_after == pytest.approx(0.05)


async def test_an_answer_that_comes_after_redis_was_lost_sets_no_turn() -> None:
    clock = FakeClock()
    shared = Shared(meanwhile=TokenBucket(10.0, 1, clock=clock), clock=clock)
    assert shared.meanwhile.try_acquire()
    answer = shared.redis.hold()
    call = asyncio.create_task(shared.limiter.acquire())
    await clock.advance()
    await shared.lose()
    answer.set_result(reply(turn=60_000 * MS))
    await clock.advance(0.11)
    await call
