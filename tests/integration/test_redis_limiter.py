from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    BulkheadFullError,
    ConfigurationError,
    Inner,
    RateLimitExceededError,
    SlidingWindow,
    TokenBucket,
    Verdict,
    deadline,
    stack,
)
from shared.infrastructure.resilience.layer import PlainCall
from shared.infrastructure.resilience.limits.redis_limiter import RedisLimiter
from shared.infrastructure.resilience.shared_rate_limiter import SharedRateLimitLayer
from tests.redis_server import (
    Limit,
    RedisServer,
    granted,
    most_within,
    processes,
    talked,
    until,
)

# Instants are those of the server, in microseconds; a bucket's are whole ones.
SECOND = 1e6
SLACK = 2


def bucket() -> TokenBucket:
    return TokenBucket(100.0, burst=5)


def window() -> SlidingWindow:
    return SlidingWindow(5, 0.05)


def slow() -> TokenBucket:
    return TokenBucket(2.0, burst=1)


both = pytest.mark.parametrize("limit", [bucket, window])


@both
async def test_no_span_of_time_sees_more_than_the_bound_however_many_processes(
    redis: RedisServer, limit: Callable[[], Limit]
) -> None:
    shape = limit()
    async with processes(redis, 3, limit) as limiters:
        instants = await asyncio.gather(*(granted(limiters[n % 3]) for n in range(60)))
    costs = [(instant, 1.0) for instant in instants]
    if isinstance(shape, SlidingWindow):
        assert most_within(costs, shape.window * SECOND - SLACK) <= shape.limit
    else:
        for milliseconds in (1, 10, 50, 100, 200):
            most = shape.most_within(milliseconds / 1000.0)
            assert most_within(costs, milliseconds * 1000.0 - SLACK) <= most + 1e-6
    # The whole rate is used, too: the last permit is where the limit allows it.
    assert max(instants) - min(instants) < 3.0 * SECOND


@both
async def test_nothing_random_breaks_the_bound(
    redis: RedisServer, limit: Callable[[], Limit]
) -> None:
    rng = random.Random(1)
    used: list[tuple[float, float]] = []
    # What a bucket gets back late it may grant again at once; a window knows better.
    unused = 0.2 if limit is window else 0.0

    async def use(limiter: RedisLimiter) -> None:
        await asyncio.sleep(rng.random() * 0.3)
        cost = rng.choice([1.0, 1.0, 2.0, 0.5])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rng.choice([0.01, 0.1, 9.0])):
                permit = await limiter.reserve(cost)
                if rng.random() < unused:
                    permit.cancel()
                else:
                    used.append((limiter._last_granted_at, cost))

    async with processes(redis, 3, limit) as limiters:
        await asyncio.gather(*(use(limiters[n % 3]) for n in range(120)))
        assert [limiter.snapshot()["waiting"] for limiter in limiters] == [0, 0, 0]
        total = sum(limiter.snapshot()["granted"] for limiter in limiters)
    assert total == pytest.approx(sum(cost for _, cost in used))
    shape = limit()
    if isinstance(shape, SlidingWindow):
        assert most_within(used, shape.window * SECOND - SLACK) <= shape.limit
    else:
        assert most_within(used, 0.05 * SECOND) <= shape.most_within(0.05)


@both
async def test_waiters_of_a_process_are_served_in_order_of_arrival(
    redis: RedisServer, limit: Callable[[], Limit]
) -> None:
    served: list[int] = []

    async def wait(limiter: RedisLimiter, number: int) -> None:
        await limiter.acquire()
        served.append(number)

    async with processes(redis, 2, limit) as (limiter, other):
        others = [asyncio.create_task(other.acquire()) for _ in range(10)]
        await asyncio.gather(*(wait(limiter, number) for number in range(30)))
        await asyncio.gather(*others)
    assert served == list(range(30))


@pytest.mark.parametrize("limit", [slow, lambda: SlidingWindow(1, 0.5)])
async def test_cancelled_waiters_cost_nothing_and_those_behind_move_up(
    redis: RedisServer, limit: Callable[[], Limit]
) -> None:
    async with processes(redis, 1, limit) as (limiter,):
        first = await granted(limiter)
        tasks = [asyncio.create_task(granted(limiter)) for _ in range(30)]
        await until(lambda: limiter._turn is not None)
        for task in tasks[:29]:
            task.cancel()
        # It would be 15 s with all of them.
        assert await tasks[29] - first < 7 * SECOND
        assert limiter.snapshot()["granted"] == 2


async def test_a_permit_that_comes_for_a_waiter_who_has_left_is_given_back(
    redis: RedisServer,
) -> None:
    async with processes(redis, 2, lambda: SlidingWindow(1, 60.0)) as (limiter, other):
        waiter = asyncio.create_task(limiter.acquire())
        while not limiter._store._tasks:  # noqa: ASYNC110 - the question is not on its way yet
            await asyncio.sleep(0)
        waiter.cancel()
        await talked(limiter)
        assert limiter.snapshot()["granted"] == 0
        assert await other.try_acquire()


@both
async def test_a_heavy_waiter_is_not_starved_by_the_light_ones_of_others(
    redis: RedisServer, limit: Callable[[], Limit]
) -> None:
    async with processes(redis, 2, limit) as (heavy, light):
        await light.acquire(5)
        waiter = asyncio.create_task(granted(heavy, 5))
        await until(lambda: heavy._turn is not None)
        others = await asyncio.gather(*(granted(light) for _ in range(20)))
        assert await waiter <= min(others)


@both
async def test_a_permit_that_would_come_too_late_is_refused_at_once_and_takes_nothing(
    redis: RedisServer, limit: Callable[[], Limit]
) -> None:
    del limit
    async with processes(redis, 2, lambda: SlidingWindow(2, 60.0)) as (limiter, other):
        await limiter.acquire(2)
        with pytest.raises(RateLimitExceededError) as refused:
            await other.acquire(max_wait=1.0)
        assert refused.value.retry_after == pytest.approx(60.0, abs=5.0)
        assert not await other.try_acquire()
        assert other.snapshot()["refused_count"] == 2
        with pytest.raises(RateLimitExceededError):
            async with deadline(2.0):
                await stack(asyncio.sleep, SharedRateLimitLayer(other), semantics=PLAIN_CALL)(0)
        # Nobody holds a place, so the permits are there when the window is over.
        with redis.admin() as admin:
            assert admin.lrange("morgan:window:{test}:log", 1, -1) == []


async def test_whoever_may_have_the_same_turn_as_someone_patient_is_not_refused(
    redis: RedisServer,
) -> None:
    async with processes(redis, 1, lambda: SlidingWindow(2, 60.0)) as (limiter,):
        await limiter.acquire(2)
        patient = asyncio.create_task(limiter.acquire())
        await until(lambda: limiter._turn is not None)
        both_at_once = asyncio.create_task(limiter.acquire(max_wait=75.0))
        await talked(limiter)
        with pytest.raises(RateLimitExceededError):
            await limiter.acquire(max_wait=75.0)
        assert not both_at_once.done()
        patient.cancel()
        both_at_once.cancel()


async def test_whoever_stands_behind_someone_patient_is_refused_if_it_is_known_to_be_late(
    redis: RedisServer,
) -> None:
    async with processes(redis, 1, slow) as (limiter,):
        await limiter.acquire()
        patient = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)
        with pytest.raises(RateLimitExceededError):  # waits for the same answer
            await limiter.acquire(max_wait=0.7)
        assert limiter._turn is not None
        with pytest.raises(RateLimitExceededError) as refused:  # comes later
            await limiter.acquire(max_wait=0.7)
        assert refused.value.retry_after == pytest.approx(1.0, abs=0.3)
        in_time = asyncio.create_task(limiter.acquire(max_wait=1.5))
        await asyncio.gather(patient, in_time)


@both
async def test_what_is_given_back_can_be_had_by_another_process(
    redis: RedisServer, limit: Callable[[], Limit]
) -> None:
    del limit
    for shape in (lambda: TokenBucket(0.01, 5), lambda: SlidingWindow(5, 500.0)):
        with redis.admin() as admin:
            admin.flushall()
        async with processes(redis, 2, shape) as (limiter, other):
            permit = await limiter.reserve(4)
            assert not await other.try_acquire(2)
            permit.commit(3)
            permit.cancel()  # settled already
            await talked(limiter)
            assert await other.try_acquire(2)
            assert not await other.try_acquire()
            other.refund(2)
            await talked(other)
            assert await limiter.try_acquire(2)
            assert limiter.utilization == pytest.approx(1.0, abs=0.01)


@both
async def test_a_permit_that_cost_more_than_estimated_is_waited_off_by_everybody(
    redis: RedisServer, limit: Callable[[], Limit]
) -> None:
    async with processes(redis, 2, limit) as (limiter, other):
        permit = await limiter.reserve(1)
        began = limiter._last_granted_at
        permit.commit(9)
        await talked(limiter)
        assert await granted(other) - began >= 0.05 * SECOND - SLACK
        assert limiter.snapshot()["granted"] == 9


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("bucket", lambda: TokenBucket(20.0, burst=2)), ("window", lambda: SlidingWindow(2, 0.1))],
)
async def test_a_pause_in_one_process_holds_in_all_and_nobody_bursts_afterwards(
    redis: RedisServer, kind: str, limit: Callable[[], Limit]
) -> None:
    async with processes(redis, 3, limit) as (busy, waiting, idle):
        await busy.acquire(2)
        waiter = asyncio.create_task(granted(waiting, 2))
        await until(lambda: waiting._turn is not None)
        busy.pause(0.3)
        await talked(busy)
        with redis.admin() as admin:
            held = float(admin.hget(f"morgan:{kind}:{{test}}", "held") or 0)
        assert not await idle.try_acquire()
        assert idle.snapshot()["paused_for"] > 0.0
        instants = sorted(await asyncio.gather(waiter, *(granted(idle) for _ in range(3))))
        assert instants[0] >= held
        assert instants[1] - instants[0] >= 0.05 * SECOND - SLACK


async def test_a_pause_also_holds_those_who_wait_here(redis: RedisServer) -> None:
    async with processes(redis, 1, lambda: TokenBucket(50.0, burst=1)) as (limiter,):
        began = await granted(limiter)
        waiter = asyncio.create_task(granted(limiter))
        await until(lambda: limiter._turn is not None)
        limiter.pause(0.2)
        limiter.pause(0.0)
        limiter.pause(float("nan"))
        with pytest.raises(RateLimitExceededError):
            await limiter.acquire(max_wait=0.05)
        assert await waiter - began >= 0.2 * SECOND


async def test_the_layer_gives_back_what_was_refused_below_and_a_429_pauses_all(
    redis: RedisServer,
) -> None:
    class Shop(PlainCall):
        def judge(self, outcome: object) -> Verdict:
            busy = outcome == 429 or isinstance(outcome, ConnectionRefusedError)
            return Verdict.BUSY if busy else super().judge(outcome)

        def retry_after(self, outcome: object) -> float | None:
            return 60.0 if outcome == 429 else 120.0

    async def full(request: int) -> int:
        raise BulkheadFullError("full")

    async def busy(request: int) -> int:
        return 429

    async def refusing(request: int) -> int:
        raise ConnectionRefusedError

    async with processes(redis, 2, lambda: SlidingWindow(2, 60.0)) as (limiter, other):
        layer = SharedRateLimitLayer(limiter, max_wait=1.0)
        with pytest.raises(BulkheadFullError):
            await layer(1, Inner(full, Shop()))
        with pytest.raises(BulkheadFullError):
            await layer(1, Inner(full, Shop()))
        with pytest.raises(ConnectionRefusedError):
            await layer(1, Inner(refusing, Shop()))
        await talked(limiter)
        assert not await other.try_acquire()
        assert other.snapshot()["paused_for"] == pytest.approx(120.0, abs=5.0)
        with redis.admin() as admin:
            admin.flushall()
        limiter._paused_until = 0.0
        assert await layer(1, Inner(busy, Shop())) == 429
        await talked(limiter)
        assert not await other.try_acquire()
        assert other.snapshot()["paused_for"] == pytest.approx(60.0, abs=5.0)


@both
async def test_nothing_stays_behind_in_redis(
    redis: RedisServer, limit: Callable[[], Limit]
) -> None:
    async with processes(redis, 1, limit) as (limiter,):
        await asyncio.gather(*(limiter.acquire() for _ in range(7)))
        with redis.admin() as admin:
            assert all(0 <= admin.pttl(key) <= 200 for key in admin.scan_iter())
            await until(lambda: admin.keys() == [])


async def test_a_cost_that_can_never_be_granted_is_an_error(redis: RedisServer) -> None:
    async with processes(redis, 1, bucket) as (limiter,):
        for cost in (0.0, -1.0, 5.1, float("nan")):
            with pytest.raises(ConfigurationError, match="can never be granted"):
                await limiter.acquire(cost)
