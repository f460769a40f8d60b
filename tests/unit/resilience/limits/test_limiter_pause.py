import asyncio
import itertools
import math

import pytest

from shared.infrastructure.resilience import (
    AllOf,
    RateLimiter,
    RateLimitLayer,
    SlidingWindow,
    TokenBucket,
)
from shared.infrastructure.resilience.errors import BulkheadFullError, RateLimitExceededError
from shared.infrastructure.resilience.layer import PLAIN_CALL, stack
from shared.infrastructure.testing import FakeClock


def limiter(kind: str, clock: FakeClock) -> RateLimiter:
    bucket = TokenBucket(10.0, burst=10, clock=clock)
    window = SlidingWindow(10, 1.0, clock=clock)
    daily = SlidingWindow(1000, 86400.0, clock=clock)
    return {"bucket": bucket, "window": window, "daily": AllOf(daily, window)}[kind]


async def grants(limiter: RateLimiter, clock: FakeClock, count: int) -> list[float]:
    """Return the instants, in seconds from here, at which `count` waiters get their permits."""
    start, at = clock.now(), list[float]()

    async def wait() -> None:
        await limiter.acquire()
        at.append(clock.now() - start)

    tasks = [asyncio.create_task(wait()) for _ in range(count)]
    await clock.advance(20.0)
    await asyncio.gather(*tasks)
    return at


@pytest.mark.parametrize(("kind", "first"), [("bucket", 2.1), ("window", 2.0), ("daily", 2.0)])
async def test_after_a_pause_waiters_come_out_evenly_at_the_sustained_rate(
    kind: str, first: float
) -> None:
    clock = FakeClock()
    limited = limiter(kind, clock)
    limited.pause(2.0)
    assert not limited.try_acquire()
    at = await grants(limited, clock, 25)
    assert at == pytest.approx([first + number / 10 for number in range(25)], abs=1e-6)


@pytest.mark.parametrize("kind", ["bucket", "window", "daily"])
async def test_permits_are_not_stored_up_while_they_are_spread(kind: str) -> None:
    clock = FakeClock()
    limited = limiter(kind, clock)
    limited.pause(2.0)
    await clock.advance(2.1)
    assert limited.try_acquire()
    assert not limited.try_acquire()


async def test_a_heavy_permit_waits_for_its_share_after_a_pause() -> None:
    clock = FakeClock()
    for limited in (limiter("bucket", clock), limiter("window", clock)):
        limited.pause(1.0)
        with pytest.raises(RateLimitExceededError) as refused:
            await limited.acquire(5, max_wait=0.1)
        assert refused.value.retry_after == pytest.approx(1.5, abs=0.11)


async def test_the_whole_limit_is_there_again_once_the_ramp_is_over() -> None:
    clock = FakeClock()
    for kind in ("bucket", "window", "daily"):
        limited = limiter(kind, clock)
        limited.pause(2.0)
        await clock.advance(3.01)
        assert all(limited.try_acquire() for _ in range(10))


@pytest.mark.parametrize("kind", ["bucket", "window"])
async def test_permits_given_back_during_a_pause_are_no_burst_after_it(kind: str) -> None:
    clock = FakeClock()
    limited = limiter(kind, clock)
    reservations = [await limited.reserve(1) for _ in range(10)]
    limited.pause(2.0)
    for reservation in reservations:
        reservation.cancel()
    at = await grants(limited, clock, 5)
    assert [late - early for early, late in itertools.pairwise(at)] == pytest.approx([0.1] * 4)


@pytest.mark.parametrize("kind", ["bucket", "window"])
async def test_a_permit_given_back_during_the_ramp_goes_to_the_next_waiter(kind: str) -> None:
    clock = FakeClock()
    limited = limiter(kind, clock)
    limited.pause(1.0)
    await clock.advance(1.1)
    reservation = limited.try_reserve(1)
    assert reservation is not None
    reservation.cancel()
    assert limited.try_acquire()


async def test_pauses_only_ever_grow_and_an_instant_in_the_past_is_none() -> None:
    clock = FakeClock()
    bucket = TokenBucket(10.0, burst=10, clock=clock)
    for instant in (clock.now(), clock.now() - 1.0, math.nan):
        bucket.pause_until(instant)
    bucket.pause(-1.0)
    assert bucket.utilization == 0.0
    bucket.pause_until(clock.now() + 5.0)
    bucket.pause(3.0)
    assert bucket.snapshot()["paused_for"] == 5.0
    bucket.pause(7.0)
    assert bucket.snapshot()["paused_for"] == 7.0


async def test_a_used_up_quota_or_retry_after_pauses_everybody() -> None:
    clock = FakeClock()
    for headers, pause in (
        ({"RateLimit": '"d";r=0;t=3'}, 3.0),
        ({"Retry-After": "4"}, 4.0),
        ({"Retry-After": "4", "RateLimit": '"d";r=0;t=6, "e";r=0;t=5'}, 6.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "9s"}, 0.0),
        ({"Retry-After": "later"}, 0.0),
    ):
        bucket = TokenBucket(10.0, burst=10, clock=clock)
        bucket.observe(headers)
        assert bucket.snapshot()["paused_for"] == pause
        assert bucket.try_acquire() == (pause == 0.0)


@pytest.mark.parametrize("kind", ["bucket", "window", "daily"])
async def test_a_quota_that_would_not_last_is_spread_until_its_reset(kind: str) -> None:
    clock = FakeClock()
    limited = limiter(kind, clock)
    limited.observe({"RateLimit": '"d";r=4;t=2, "e";r=50;t=20'})
    at = await grants(limited, clock, 4)
    assert at == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert limited.try_acquire(5)


async def test_a_quota_that_lasts_changes_nothing_and_ends_earlier_advice() -> None:
    clock = FakeClock()
    bucket = TokenBucket(10.0, burst=10, clock=clock)
    bucket.observe({"RateLimit": '"d";r=1;t=9'})
    assert not bucket.try_acquire()
    bucket.observe({"date": "Sat, 21 Nov 2026 12:00:00 GMT"})
    assert not bucket.try_acquire()
    bucket.observe({"RateLimit": '"d";r=1000;t=9'})
    assert all(bucket.try_acquire() for _ in range(10))
    assert not bucket.try_acquire()


async def test_advice_that_keeps_coming_does_not_push_the_next_permit_away() -> None:
    clock = FakeClock()
    bucket = TokenBucket(10.0, burst=10, clock=clock)
    for _ in range(9):
        bucket.observe({"RateLimit": '"d";r=10;t=10'})
        await clock.advance(0.1)
    waiter = asyncio.create_task(bucket.acquire())
    await clock.advance(0.05)
    assert not waiter.done()
    await clock.advance(0.05)
    assert waiter.done()


async def test_a_refusal_by_advice_counts_the_line_and_a_refund_lets_it_move_up() -> None:
    clock = FakeClock()
    bucket = TokenBucket(10.0, burst=10, clock=clock)
    bucket.observe({"RateLimit": '"d";r=10;t=10'})
    await clock.advance(1.0)
    assert bucket.try_acquire()
    waiters = [asyncio.create_task(bucket.acquire()) for _ in range(2)]
    await clock.advance(0.0)
    with pytest.raises(RateLimitExceededError) as refused:
        await bucket.acquire(max_wait=0.5)
    assert refused.value.retry_after == pytest.approx(3.0)
    bucket.refund()
    await clock.advance(0.0)
    assert [waiter.done() for waiter in waiters] == [True, False]
    await clock.advance(1.0)
    assert waiters[1].done()


async def test_advice_and_pause_hold_together() -> None:
    clock = FakeClock()
    window = SlidingWindow(10, 1.0, clock=clock)
    window.observe({"RateLimit": '"d";r=5;t=10'})
    window.pause(3.0)
    assert await grants(window, clock, 3) == pytest.approx([3.0, 5.0, 7.0])


async def test_the_layer_gives_a_refused_permit_back_at_the_instant_it_was_taken() -> None:
    clock = FakeClock()
    window = SlidingWindow(10, 1.0, clock=clock)

    async def refuse_later(_request: str) -> str:
        await clock.sleep(0.9)
        assert window.try_acquire(9)
        raise BulkheadFullError("full")

    send = stack(refuse_later, RateLimitLayer(window), semantics=PLAIN_CALL)
    call = asyncio.create_task(send("x"))
    await clock.advance(0.95)
    assert isinstance(call.exception(), BulkheadFullError)
    assert window.try_acquire()
    await clock.advance(0.1)
    assert not window.try_acquire()
