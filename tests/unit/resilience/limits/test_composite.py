import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.infrastructure.resilience import (
    AllOf,
    RateLimitLayer,
    SlidingWindow,
    TokenBucket,
)
from shared.infrastructure.resilience.errors import BulkheadFullError, ConfigurationError
from shared.infrastructure.resilience.layer import PLAIN_CALL, stack
from shared.infrastructure.testing import FakeClock


async def test_a_permit_is_taken_from_every_member_or_from_none() -> None:
    clock = FakeClock()
    fast, slow = TokenBucket(10.0, burst=2, clock=clock), SlidingWindow(3, 60.0, clock=clock)
    both = AllOf(fast, slow)
    assert [both.try_acquire() for _ in range(3)] == [True, True, False]
    assert (fast.snapshot()["granted"], slow.snapshot()["granted"]) == (2, 2)
    await clock.advance(1.0)
    assert [both.try_acquire() for _ in range(2)] == [True, False]
    assert (fast.snapshot()["granted"], slow.snapshot()["granted"]) == (3, 3)
    assert fast.try_acquire()


async def test_its_line_is_served_in_order_when_the_slowest_member_has_permits() -> None:
    clock = FakeClock()
    both = AllOf(TokenBucket(10.0, burst=2, clock=clock), SlidingWindow(4, 10.0, clock=clock))
    served: list[tuple[int, float]] = []
    start = clock.now()

    async def wait(number: int) -> None:
        await both.acquire()
        served.append((number, round(clock.now() - start, 3)))

    tasks = [asyncio.create_task(wait(number)) for number in range(6)]
    await clock.advance(0.0)
    assert clock.pending == 1
    await clock.advance(11.0)
    await asyncio.gather(*tasks)
    assert served == [(0, 0.0), (1, 0.0), (2, 0.1), (3, 0.2), (4, 10.0), (5, 10.0)]


async def test_it_reports_the_tightest_of_its_members() -> None:
    clock = FakeClock()
    both = AllOf(TokenBucket(10.0, burst=5, clock=clock), SlidingWindow(20, 60.0, clock=clock))
    assert both.try_acquire(4)
    assert both.capacity == 5
    assert both.utilization == pytest.approx(0.8)
    assert both.rate == pytest.approx(1 / 3)
    with pytest.raises(ConfigurationError):
        await both.acquire(6)


async def test_a_call_refused_below_gives_back_to_every_member() -> None:
    clock = FakeClock()
    members = TokenBucket(10.0, burst=2, clock=clock), SlidingWindow(2, 60.0, clock=clock)
    both = AllOf(*members)

    async def refuse(_request: str) -> str:
        raise BulkheadFullError("full")

    send = stack(refuse, RateLimitLayer(both), semantics=PLAIN_CALL)
    for _ in range(5):
        with pytest.raises(BulkheadFullError):
            await send("x")
    assert both.utilization == 0.0
    assert [member.snapshot()["granted"] for member in members] == [0, 0]


async def test_a_member_that_is_paused_or_used_on_its_own_still_holds_its_limit() -> None:
    clock = FakeClock()
    fast, slow = TokenBucket(10.0, burst=5, clock=clock), SlidingWindow(5, 60.0, clock=clock)
    both = AllOf(fast, AllOf(slow))
    assert slow.try_acquire(5)
    assert not both.try_acquire()
    waiter = asyncio.create_task(slow.acquire())
    await clock.advance(0.0)
    both.refund(1)  # reaches whoever waits for the member itself
    await clock.advance(0.0)
    assert waiter.done()
    fast.pause(100.0)
    await clock.advance(60.0)
    assert not both.try_acquire()


def test_members_must_exist_and_share_a_clock() -> None:
    with pytest.raises(ConfigurationError):
        AllOf()
    with pytest.raises(ConfigurationError):
        AllOf(TokenBucket(1.0, clock=FakeClock()), TokenBucket(1.0, clock=FakeClock()))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_no_span_sees_more_than_any_member_allows_whoever_is_cancelled(seed: int) -> None:
    rng = random.Random(seed)
    granted: list[float] = []

    async def run() -> None:
        clock = FakeClock()
        members = SlidingWindow(3, 0.3, clock=clock), SlidingWindow(8, 2.0, clock=clock)
        both = AllOf(*members)

        async def caller() -> None:
            await both.acquire()
            granted.append(clock.now())

        tasks: list[asyncio.Task[None]] = []
        for _ in range(25):
            tasks += [asyncio.create_task(caller()) for _ in range(rng.randrange(4))]
            await clock.advance(rng.random() * 0.4)
            if tasks and rng.random() < 0.4:
                rng.choice(tasks).cancel()
        await clock.advance(30.0)
        assert all(task.done() for task in tasks)
        assert {each.snapshot()["granted"] for each in (both, *members)} == {len(granted)}

    asyncio.run(run())
    for limit, window in ((3, 0.3), (8, 2.0)):
        for start in granted:
            assert sum(start <= at < start + window - 1e-6 for at in granted) <= limit


@pytest.mark.parametrize("seconds", [0.05, 0.5, 1.0, 2.5, 30.0])
async def test_no_span_sees_more_than_the_stated_bound(seconds: float) -> None:
    for build in (
        lambda clock: TokenBucket(10.0, 3, clock=clock),
        lambda clock: SlidingWindow(7, 1.0, clock=clock),
        lambda clock: AllOf(TokenBucket(10.0, 3, clock=clock), SlidingWindow(15, 4.0, clock=clock)),
    ):
        clock = FakeClock()
        limited = build(clock)
        granted: list[float] = []
        for _ in range(2000):
            while limited.try_acquire():
                granted.append(clock.now())
            await clock.advance(0.02)
        most = max(sum(0 <= at - first < seconds - 1e-6 for at in granted) for first in granted)
        assert most <= limited.most_within(seconds)
