import asyncio
import re
from collections.abc import Callable

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    AdaptiveBulkhead,
    AdaptiveBulkheadConfig,
    AdaptiveBulkheadLayer,
    Bulkhead,
    BulkheadConfig,
    BulkheadFullError,
    BulkheadLayer,
    BulkheadResized,
    CallQueued,
    CallRefused,
    Event,
    Layer,
    LimiterPaused,
    Listeners,
    RateLimitExceededError,
    RateLimitLayer,
    TokenBucket,
    Verdict,
    stack,
)
from shared.infrastructure.resilience.layer import PlainCall
from shared.infrastructure.resilience.shared_rate_limiter import SharedRateLimitLayer
from shared.infrastructure.testing import FakeClock

Make = Callable[[FakeClock, Listeners], Layer[float, str]]


def bulkhead(clock: FakeClock, heard: Listeners) -> Layer[float, str]:
    config = BulkheadConfig(max_concurrent=1, max_wait=4.0)
    return BulkheadLayer(Bulkhead(config, clock=clock, name="db", listeners=heard))


def adaptive_bulkhead(clock: FakeClock, heard: Listeners) -> Layer[float, str]:
    config = AdaptiveBulkheadConfig(initial_concurrent=1, max_wait=4.0)
    slots = AdaptiveBulkhead(config, clock=clock, name="db", listeners=heard)
    return AdaptiveBulkheadLayer(slots)


@pytest.mark.parametrize("make", [bulkhead, adaptive_bulkhead])
async def test_a_call_that_waits_for_a_slot_is_told_and_so_is_one_refused(make: Make) -> None:
    clock = FakeClock()
    told: list[Event] = []

    async def work(seconds: float) -> str:
        await clock.sleep(seconds)
        return "done"

    send = stack(work, make(clock, Listeners([told.append])), semantics=PLAIN_CALL)
    calls = [asyncio.create_task(send(3.0)) for _ in range(3)]
    await clock.advance(10.0)
    assert [type(call.exception()) for call in calls] == [
        type(None),
        type(None),
        BulkheadFullError,
    ]
    assert told == [CallQueued("db", "bulkhead", 3.0), CallRefused("db", "bulkhead_full")]


async def test_a_call_that_waits_for_a_permit_is_told_and_so_is_one_refused() -> None:
    clock = FakeClock()
    told: list[Event] = []
    limiter = RateLimitLayer(
        TokenBucket(1.0, 1, clock=clock),
        1.5,
        name="api",
        clock=clock,
        listeners=Listeners([told.append]),
    )

    async def work(request: str) -> str:
        return request

    send = stack(work, limiter, semantics=PLAIN_CALL)
    await send("at once")
    assert told == []
    waiting = asyncio.create_task(send("a second later"))
    await clock.advance()
    with pytest.raises(RateLimitExceededError):
        await send("too late")
    await clock.advance(1.0)
    assert await waiting == "a second later"
    assert told == [
        CallRefused("api", "rate_limit_exceeded", 2.0),
        CallQueued("api", "rate limiter", 1.0),
    ]


async def test_a_cancelled_wait_is_nobodys_news() -> None:
    clock = FakeClock()
    told: list[Event] = []
    limiter = TokenBucket(1.0, 1, clock=clock)
    layer = RateLimitLayer(limiter, name="api", clock=clock, listeners=Listeners([told.append]))

    async def work(request: str) -> str:
        return request

    send = stack(work, layer, semantics=PLAIN_CALL)
    await send("at once")
    waiting = asyncio.create_task(send("later"))
    await clock.advance()
    waiting.cancel()
    await clock.advance(5.0)
    assert told == []


class Busy(PlainCall):
    def judge(self, outcome: object) -> Verdict:
        return Verdict.BUSY if isinstance(outcome, str) else super().judge(outcome)

    def retry_after(self, outcome: object) -> float | None:
        return float(found[0]) if (found := re.findall(r"\d+", str(outcome))) else None


@pytest.mark.parametrize(
    "layer",
    [
        lambda limiter, heard: RateLimitLayer(limiter, name="api", listeners=heard),
        lambda limiter, heard: SharedRateLimitLayer(limiter, name="api", listeners=heard),
    ],
)
async def test_a_pause_that_the_service_asks_for_is_told(
    layer: Callable[[TokenBucket, Listeners], Layer[str, str]],
) -> None:
    clock = FakeClock()
    told: list[Event] = []
    limiter = TokenBucket(100.0, 10, clock=clock)

    async def work(request: str) -> str:
        return request

    send = stack(work, layer(limiter, Listeners([told.append])), semantics=Busy())
    await send("busy")
    assert told == []
    assert limiter.snapshot()["paused_for"] == 0.0
    await send("busy, come back in 7 s")
    assert told == [LimiterPaused("api", 7.0)]
    assert limiter.snapshot()["paused_for"] == 7.0


async def test_a_shared_limit_that_refuses_a_call_tells_so() -> None:
    clock = FakeClock()
    told: list[Event] = []
    limiter = TokenBucket(1.0, 1, clock=clock)
    layer = SharedRateLimitLayer(limiter, 0.5, name="api", listeners=Listeners([told.append]))

    async def work(request: str) -> str:
        return request

    send = stack(work, layer, semantics=PLAIN_CALL)
    await send("at once")
    with pytest.raises(RateLimitExceededError):
        await send("too late")
    assert told == [CallRefused("api", "rate_limit_exceeded", 1.0)]


def test_a_bulkhead_tells_when_it_grows_or_shrinks() -> None:
    told: list[Event] = []
    slots = Bulkhead(
        BulkheadConfig(max_concurrent=4), name="db", listeners=Listeners([told.append])
    )
    slots.resize(4)
    slots.resize(2)
    assert told == [BulkheadResized("db", 4, 2)]
