from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable, Iterator

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
from tests.redis_server import Limit, RedisServer, most_within, processes, serving_redis

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


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with serving_redis() as server:
        yield server


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    with server.admin() as admin:
        admin.flushall()
    return server


async def granted(limiter: RedisLimiter, cost: float = 1.0) -> float:
    await limiter.acquire(cost)
    return limiter._last_granted_at


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)


async def talked(limiter: RedisLimiter) -> None:
    """Wait until Redis has been told everything."""
    await until(lambda: limiter._talk is not None and limiter._talk.done())


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


async def test_lines_take_turns_however_long_they_are(redis: RedisServer) -> None:
    async with processes(redis, 2, lambda: TokenBucket(20.0, burst=1)) as (crowd, pair):
        await crowd.acquire()
        many = [asyncio.create_task(granted(crowd)) for _ in range(10)]
        await until(lambda: crowd._turn is not None)
        last = max(await asyncio.gather(granted(pair), granted(pair)))
        before = [task for task in many if task.done() and task.result() < last]
        assert 1 <= len(before) <= 4
        for task in many:
            task.cancel()


@both
async def test_cancelled_waiters_cost_nothing_and_those_behind_move_up(
    redis: RedisServer, limit: Callable[[], Limit]
) -> None:
    async with processes(redis, 1, limit) as (limiter,):
        first = await granted(limiter, 5)
        tasks = [asyncio.create_task(granted(limiter)) for _ in range(30)]
        await until(lambda: limiter._turn is not None)
        for task in tasks[:29]:
            task.cancel()
        # The place of the first in line is that of the last one now.
        last = await tasks[29]
        assert last - first <= 0.05 * SECOND + SLACK
        assert limiter.snapshot()["granted"] == 6


async def test_a_line_that_has_emptied_holds_up_nobody(redis: RedisServer) -> None:
    async with processes(redis, 2, slow) as (limiter, other):
        await limiter.acquire()
        waiter = asyncio.create_task(limiter.acquire())
        await until(lambda: limiter._turn is not None)
        behind = asyncio.create_task(other.acquire())
        await until(lambda: other._turn is not None)
        with redis.admin() as admin:

            def lines() -> int:
                return len(json.loads(admin.hget("morgan:bucket:{test}", "lines") or "[]"))

            assert lines() == 2
            waiter.cancel()
            await until(lambda: lines() < 2)
            await behind
            await until(lambda: lines() == 0)


async def test_a_line_whose_process_has_died_is_passed_over(redis: RedisServer) -> None:
    async with processes(redis, 1, slow) as (limiter,):
        await limiter.acquire()
        async with processes(redis, 1, slow) as (dead,):
            waiter = asyncio.create_task(dead.acquire())
            await until(lambda: dead._turn is not None)
        await limiter.acquire()
        with pytest.raises(ConfigurationError, match="closed"):
            await waiter


async def test_a_permit_given_back_elsewhere_brings_a_turn_forward(redis: RedisServer) -> None:
    async with processes(redis, 2, lambda: SlidingWindow(2, 600.0)) as (limiter, other):
        permit = await limiter.reserve(2)
        waiter = asyncio.create_task(other.acquire())
        await until(lambda: other._turn is not None)
        permit.commit(1)
        await waiter
        assert not await limiter.try_acquire()


async def test_a_permit_that_comes_for_a_waiter_who_has_left_is_given_back(
    redis: RedisServer,
) -> None:
    async with processes(redis, 2, lambda: SlidingWindow(1, 60.0)) as (limiter, other):
        waiter = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)  # the question is on its way
        waiter.cancel()
        await until(lambda: limiter._heard[0] == 0.0 and not limiter._news)
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
            return Verdict.BUSY if outcome == 429 else super().judge(outcome)

        def retry_after(self, outcome: object) -> float | None:
            return 60.0

    async def full(request: int) -> int:
        raise BulkheadFullError("full")

    async def busy(request: int) -> int:
        return 429

    async with processes(redis, 2, lambda: SlidingWindow(1, 60.0)) as (limiter, other):
        layer = SharedRateLimitLayer(limiter, max_wait=1.0)
        with pytest.raises(BulkheadFullError):
            await layer(1, Inner(full, Shop()))
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
