"""What a shared limiter does when there is no Redis, and what it does before it asks one."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest
from pydantic import ValidationError

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    ConfigurationError,
    MissingExtraError,
    RateLimitExceededError,
    SlidingWindow,
    TokenBucket,
    stack,
)
from shared.infrastructure.resilience.events import Event, LimiterStoreChanged
from shared.infrastructure.resilience.limits.redis_limiter import RedisLimiter
from shared.infrastructure.resilience.limits.redis_line import Line
from shared.infrastructure.resilience.limits.redis_store import RedisConfig, RedisStore
from shared.infrastructure.resilience.shared_rate_limiter import SharedRateLimitLayer
from shared.infrastructure.testing import FakeClock


@pytest.fixture
def nowhere() -> RedisConfig:
    """The address of a port on which nobody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        return RedisConfig(url=f"redis://user:secret@127.0.0.1:{reserved.getsockname()[1]}/3")


async def alone(limiter: RedisLimiter) -> RedisLimiter:
    """Return the limiter once it knows that there is no Redis."""
    await limiter.acquire()
    assert limiter.snapshot()["shared"] is False
    return limiter


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", ""])
def test_a_url_that_is_not_of_redis_is_an_error(url: str) -> None:
    with pytest.raises(ValidationError, match="url"):
        RedisConfig(url=url)


def test_a_url_that_makes_no_sense_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="makes no sense"):
        RedisStore(RedisConfig(url="redis://127.0.0.1:port"))


def test_without_the_package_redis_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, nowhere: RedisConfig
) -> None:
    monkeypatch.delitem(
        sys.modules, "shared.infrastructure.resilience.limits.redis_wire", raising=False
    )
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(MissingExtraError, match=r"morgan-sdk\[redis\]"):
        RedisStore(nowhere)


async def test_the_event_says_where_redis_is_but_not_the_password(nowhere: RedisConfig) -> None:
    events: list[Event] = []
    async with RedisStore(nowhere, listeners=[events.append]) as store:
        await alone(RedisLimiter("test", TokenBucket(1.0, 5), store))
    (event,) = events
    assert isinstance(event, LimiterStoreChanged)
    assert event.available is False
    assert event.service == nowhere.url.partition("@")[2].removesuffix("/3")
    assert "secret" not in str(event.to_dict())
    assert "kept by each process for itself" in str(event)
    back = LimiterStoreChanged("redis", available=True, reason="back after 2 s")
    assert str(back) == "rate limits are shared again: back after 2 s"


def test_use_on_a_second_event_loop_is_an_error(nowhere: RedisConfig) -> None:
    store = RedisStore(nowhere)
    limiter = RedisLimiter("test", TokenBucket(1.0, 5), store)

    async def first() -> None:
        await limiter.acquire()

    async def second() -> None:
        with pytest.raises(ConfigurationError, match="another event loop"):
            await limiter.acquire()
        await store.aclose()

    asyncio.run(first())
    asyncio.run(second())


async def test_waiters_are_served_in_order_at_the_rate_of_the_limit(nowhere: RedisConfig) -> None:
    clock = FakeClock()
    served: list[int] = []

    async def wait(number: int) -> None:
        await limiter.acquire()
        served.append(number)

    async with RedisStore(nowhere, clock=clock) as store:
        limiter = await alone(RedisLimiter("test", TokenBucket(10.0, 1, clock=clock), store))
        tasks = [asyncio.create_task(wait(number)) for number in range(10)]
        await clock.advance(0.0)
        tasks[0].cancel()
        tasks[4].cancel()
        await clock.advance(0.301)
        assert served == [1, 2, 3]
        assert limiter.snapshot()["waiting"] == 5
        await clock.advance(0.5)
        assert served == [1, 2, 3, 5, 6, 7, 8, 9]


async def test_a_permit_handed_over_in_the_tick_of_a_cancellation_is_given_back(
    nowhere: RedisConfig,
) -> None:
    clock = FakeClock()
    async with RedisStore(nowhere, clock=clock) as store:
        limiter = await alone(RedisLimiter("test", TokenBucket(10.0, 1, clock=clock), store))
        waiter = asyncio.create_task(limiter.acquire())
        await clock.advance(0.0)
        clock._now += 10.0
        limiter._serve()  # the permit is granted, the waiter has not run yet
        waiter.cancel()
        await clock.advance(0.0)
        assert waiter.cancelled()
        assert limiter.snapshot()["granted"] == 1
        assert limiter.utilization == 0.0


async def test_known_lateness_is_refused_at_once_and_a_pause_makes_more_of_it(
    nowhere: RedisConfig,
) -> None:
    clock = FakeClock()
    async with RedisStore(nowhere, clock=clock) as store:
        limiter = await alone(RedisLimiter("test", TokenBucket(10.0, 1, clock=clock), store))
        with pytest.raises(RateLimitExceededError) as refused:
            await limiter.acquire(max_wait=0.05)
        assert refused.value.retry_after == pytest.approx(0.1)
        impatient = asyncio.create_task(limiter.acquire(max_wait=0.5))
        patient = asyncio.create_task(limiter.acquire())
        await clock.advance(0.0)
        limiter.pause(1.0)
        await clock.advance(0.0)
        with pytest.raises(RateLimitExceededError):
            await impatient
        await clock.advance(1.05)
        assert not patient.done()
        await clock.advance(0.06)
        assert patient.done()
        assert limiter.snapshot()["refused_count"] == 2


async def test_a_reservation_is_settled_where_it_was_made(nowhere: RedisConfig) -> None:
    clock = FakeClock()
    async with RedisStore(nowhere, clock=clock) as store:
        limiter = await alone(RedisLimiter("test", SlidingWindow(10, 1.0, clock=clock), store))
        permit = await limiter.reserve(8)
        permit.commit(4)
        assert limiter.utilization == pytest.approx(0.5)
        (await limiter.reserve(1)).commit(6)
        assert limiter.utilization == 1.0
        limiter.refund(1)
        assert limiter.snapshot()["granted"] == 10
        assert not await limiter.try_acquire()
        await clock.advance(1.1)
        assert await limiter.try_acquire(10)


async def test_the_layer_takes_a_limiter_of_one_process_too() -> None:
    clock = FakeClock()
    bucket = TokenBucket(1.0, 5, clock=clock)

    async def double(request: int) -> int:
        return 2 * request

    assert await stack(double, SharedRateLimitLayer(bucket), semantics=PLAIN_CALL)(4) == 8
    assert bucket.snapshot()["granted"] == 1


async def test_a_line_refuses_exactly_those_whose_turn_is_too_late() -> None:
    line = Line()
    futures = [line.join(cost, until) for cost, until in ((2.0, 5.0), (3.0, 6.9), (1.0, 6.0))]
    line.refuse_late(5.0, lambda cost: cost - 2.0, now=0.0)
    assert [future.done() for future in futures] == [False, True, False]
    error = futures[1].exception()
    assert isinstance(error, RateLimitExceededError)
    assert error.retry_after == pytest.approx(8.0)
    assert line.queued_cost == 3.0
    assert line.refused == 1


async def test_a_waiter_that_was_cancelled_is_neither_granted_nor_refused() -> None:
    line = Line()
    futures = [line.join(1.0, 5.0) for _ in range(3)]
    for future in futures[:2]:
        future.cancel()
    head = line.head
    assert head is not None
    assert head[0] is futures[2]
    assert not line.grant(futures[0], 1.0)
    line.refuse(futures[1], 1.0)
    assert line.refused == 0
    assert len(line) == 1
