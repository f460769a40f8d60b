import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    BulkheadFullError,
    ConfigurationError,
    RateLimitConfig,
    RateLimiter,
    RateLimitExceededError,
    RateLimitLayer,
    RateLimitStrategy,
    SlidingWindow,
    TokenBucket,
    deadline,
    stack,
)
from shared.infrastructure.testing import FakeClock


def limiters(clock: FakeClock) -> list[RateLimiter]:
    return [TokenBucket(10.0, burst=5, clock=clock), SlidingWindow(5, 0.5, clock=clock)]


def queue_up(limiter: RateLimiter, count: int, served: list[int]) -> list[asyncio.Task[None]]:
    async def wait(number: int) -> None:
        await limiter.acquire()
        served.append(number)

    return [asyncio.create_task(wait(number)) for number in range(count)]


@pytest.mark.parametrize("index", [0, 1])
async def test_waiters_are_served_in_order_of_arrival_at_the_promised_rate(index: int) -> None:
    clock = FakeClock()
    limiter = limiters(clock)[index]
    served: list[int] = []
    tasks = queue_up(limiter, 25, served)
    await clock.advance(0.0)
    assert served == list(range(5))
    await clock.advance(2.001)
    assert served == list(range(25))
    assert all(task.done() for task in tasks)
    assert clock.pending == 0


@pytest.mark.parametrize("index", [0, 1])
async def test_nobody_barges_past_a_line(index: int) -> None:
    clock = FakeClock()
    limiter = limiters(clock)[index]
    served: list[int] = []
    tasks = queue_up(limiter, 6, served)
    await clock.advance(0.0)
    clock._now += 60.0  # a permit is free by now, but the line has not been served yet
    assert not limiter.try_acquire()
    await clock.advance(0.0)
    await asyncio.gather(*tasks)
    assert limiter.try_acquire()


@pytest.mark.parametrize("index", [0, 1])
async def test_a_cancelled_waiter_costs_nothing_and_those_behind_it_move_up(index: int) -> None:
    clock = FakeClock()
    limiter = limiters(clock)[index]
    served: list[int] = []
    tasks = queue_up(limiter, 10, served)
    await clock.advance(0.0)
    for task in tasks[5:9]:
        task.cancel()
    await clock.advance(0.5)
    assert served == [0, 1, 2, 3, 4, 9]
    assert limiter.snapshot()["waiting"] == 0


@pytest.mark.parametrize("index", [0, 1])
async def test_a_permit_handed_over_in_the_tick_of_a_cancellation_is_given_back(index: int) -> None:
    clock = FakeClock()
    limiter = limiters(clock)[index]
    served: list[int] = []
    tasks = queue_up(limiter, 6, served)
    await clock.advance(0.0)
    granted = limiter.snapshot()["granted"]
    clock._now += 10.0
    limiter._queue.pump()  # the permit is granted, the waiter has not run yet
    tasks[5].cancel()
    await clock.advance(0.0)
    assert tasks[5].cancelled()
    assert limiter.snapshot()["granted"] == granted


async def test_a_heavy_waiter_is_not_starved_by_light_ones() -> None:
    clock = FakeClock()
    bucket = TokenBucket(10.0, burst=5, clock=clock)
    await bucket.acquire(5)
    order: list[str] = []

    async def take(name: str, cost: float) -> None:
        await bucket.acquire(cost)
        order.append(name)

    tasks = [asyncio.create_task(take("heavy", 5))]
    tasks += [asyncio.create_task(take("light", 1)) for _ in range(20)]
    await clock.advance(0.5)
    assert order[0] == "heavy"
    await clock.advance(5.0)
    await asyncio.gather(*tasks)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), sliding=st.booleans())
def test_no_span_of_time_sees_more_than_the_stated_bound(seed: int, sliding: bool) -> None:
    async def run() -> list[float]:
        rng = random.Random(seed)
        clock = FakeClock()
        limiter: RateLimiter = (
            SlidingWindow(10, 1.0, clock=clock) if sliding else TokenBucket(10.0, 4, clock=clock)
        )
        granted: list[float] = []

        async def caller() -> None:
            await limiter.acquire()
            granted.append(clock.now())

        tasks: list[asyncio.Task[None]] = []
        for _ in range(30):
            tasks += [asyncio.create_task(caller()) for _ in range(rng.randrange(4))]
            await clock.advance(rng.random() * 0.3)
            if tasks and rng.random() < 0.3:
                rng.choice(tasks).cancel()
        await clock.advance(20.0)
        assert all(task.done() for task in tasks)
        return granted

    granted = asyncio.run(run())
    for start in granted:
        in_window = sum(start <= at < start + 1.0 - 1e-6 for at in granted)
        assert in_window <= (10 if sliding else 4 + 10)


async def test_a_wait_longer_than_allowed_is_refused_at_once() -> None:
    clock = FakeClock()
    for limiter in limiters(clock):
        for _ in range(5):
            assert limiter.try_acquire()
        with pytest.raises(RateLimitExceededError) as caught:
            await limiter.acquire(max_wait=0.01)
        assert caught.value.retry_after is not None
        assert 0.01 < caught.value.retry_after <= 0.5
        assert clock.pending == 0


async def test_a_refusal_takes_those_already_in_line_into_account() -> None:
    clock = FakeClock()
    bucket = TokenBucket(10.0, burst=1, clock=clock)
    served: list[int] = []
    tasks = queue_up(bucket, 11, served)
    await clock.advance(0.0)
    with pytest.raises(RateLimitExceededError) as caught:
        await bucket.acquire(max_wait=0.5)
    assert caught.value.retry_after == pytest.approx(1.1)
    for task in tasks:
        task.cancel()
    await clock.advance(0.0)


async def test_a_pause_holds_everybody_and_then_service_goes_on_in_order() -> None:
    clock = FakeClock()
    for limiter in limiters(clock):
        limiter.pause(2.0)
        served: list[int] = []
        tasks = queue_up(limiter, 3, served)
        await clock.advance(1.9)
        assert served == []
        await clock.advance(0.6)
        assert served == [0, 1, 2]
        await asyncio.gather(*tasks)


async def test_utilization_is_live() -> None:
    clock = FakeClock()
    for limiter in limiters(clock):
        assert limiter.utilization == 0.0
        for _ in range(5):
            limiter.try_acquire()
        assert limiter.utilization == pytest.approx(1.0)
        await clock.advance(10.0)
        assert limiter.utilization == 0.0


async def test_impossible_costs_and_rates_are_configuration_errors() -> None:
    clock = FakeClock()
    for limiter in limiters(clock):
        for cost in (0, -1, 6):
            with pytest.raises(ConfigurationError):
                await limiter.acquire(cost)
    with pytest.raises(ConfigurationError):
        TokenBucket(0)
    with pytest.raises(ConfigurationError):
        SlidingWindow(0)


def test_the_config_builds_the_limiter_it_describes() -> None:
    bucket = RateLimitConfig(requests_per_second=100, burst_size=20).build()
    assert isinstance(bucket, TokenBucket)
    assert (bucket.rate, bucket.burst) == (100, 20)
    window = RateLimitConfig(
        requests_per_second=0.5, strategy=RateLimitStrategy.SLIDING_WINDOW
    ).build()
    assert isinstance(window, SlidingWindow)
    assert (window.limit, window.window) == (1, 2.0)


async def test_a_call_refused_below_gives_its_permit_back() -> None:
    clock = FakeClock()
    bucket = TokenBucket(1.0, burst=1, clock=clock)

    async def refuse(_request: str) -> str:
        raise BulkheadFullError("full")

    send = stack(refuse, RateLimitLayer(bucket), semantics=PLAIN_CALL)
    for _ in range(3):
        with pytest.raises(BulkheadFullError):
            await send("x")
    assert bucket.utilization == 0.0


async def test_a_permit_beyond_the_callers_deadline_is_refused_without_waiting() -> None:
    clock = FakeClock()
    bucket = TokenBucket(1.0, burst=1, clock=clock)
    bucket.try_acquire()

    async def answer(_request: str) -> str:
        return "ok"

    send = stack(answer, RateLimitLayer(bucket), semantics=PLAIN_CALL)
    async with deadline(0.5, clock=clock):
        with pytest.raises(RateLimitExceededError):
            await send("x")


async def test_one_timer_serves_a_line_of_10000_and_cancelling_them_frees_it() -> None:
    clock = FakeClock()
    bucket = TokenBucket(1.0, burst=1, clock=clock)
    served: list[int] = []
    tasks = queue_up(bucket, 10_000, served)
    await clock.advance(0.0)
    assert clock.pending == 1
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert bucket.snapshot()["waiting"] == 0
    assert clock.pending == 0
