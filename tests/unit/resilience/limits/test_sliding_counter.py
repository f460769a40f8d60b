import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.infrastructure.resilience import (
    AllOf,
    ConfigurationError,
    RateLimitConfig,
    RateLimitExceededError,
    RateLimitStrategy,
    SlidingCounter,
    SlidingWindow,
)
from shared.infrastructure.testing import FakeClock


def most_in_a_span(grants: list[tuple[float, float]], seconds: float) -> float:
    """Return the most that any span of `seconds` saw; spans are open at one end."""
    return max(
        sum(cost for at, cost in grants if start <= at < start + seconds - 1e-6)
        for start, _ in grants
    )


# Gaps that sit on, beside and across the borders of slices (0.25 s) and of the window (1 s).
GAPS = st.one_of(
    st.sampled_from([0.0, 1e-7, 0.05, 0.2, 0.25 - 1e-7, 0.25, 0.3, 0.75, 1.0 - 1e-7, 1.0, 2.5]),
    st.floats(0.0, 1.5),
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    calls=st.lists(st.tuples(GAPS, st.integers(1, 10), st.booleans()), min_size=1, max_size=60),
    origin=st.floats(0.0, 1e6),
    slices=st.sampled_from([1, 4, 50]),
)
def test_no_span_sees_more_than_the_limit_whatever_is_asked_for_and_given_back(
    calls: list[tuple[float, int, bool]], origin: float, slices: int
) -> None:
    clock = FakeClock(origin)
    counter = SlidingCounter(10, 1.0, slices=slices, clock=clock)
    granted: list[tuple[float, float]] = []
    for gap, cost, gives_back in calls:
        clock._now += gap
        while counter.try_acquire(cost):
            granted.append((clock.now(), cost))
        if gives_back and granted:
            at, unused = granted.pop(len(granted) // 2)
            counter.refund(unused, granted_at=at)
        if granted:
            assert most_in_a_span(granted, 1.0) <= 10
            assert most_in_a_span(granted, 2.5) <= counter.most_within(2.5) == 30


def test_a_burst_before_the_border_of_two_windows_does_not_count_as_evenly_spread() -> None:
    clock = FakeClock(1000.9)
    counter = SlidingCounter(1000, 1.0, clock=clock)
    assert counter.try_acquire(1000)
    for _ in range(9):
        clock._now += 0.1
        assert not counter.try_acquire()
    clock._now += 0.1
    assert counter.try_acquire(1000)


async def test_a_line_of_waiters_gets_the_whole_limit_in_each_window() -> None:
    clock, granted = FakeClock(), list[float]()
    counter = SlidingCounter(20, 1.0, slices=4, clock=clock)

    async def caller(number: int) -> None:
        await clock.sleep(number / 60)  # they fill the first window bit by bit
        await counter.acquire()
        granted.append(clock.now() - 1000.0)

    tasks = [asyncio.create_task(caller(number)) for number in range(200)]
    await clock.advance(12.0)
    await asyncio.gather(*tasks)
    assert granted == sorted(granted)
    for second in range(2, 8):
        assert sum(second <= at < second + 1 for at in granted) == 20


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_it_grants_no_less_than_an_exact_window_that_is_one_slice_longer(seed: int) -> None:
    clock, rng = FakeClock(), random.Random(seed)
    counter = SlidingCounter(30, 1.0, slices=5, clock=clock)
    exact = SlidingWindow(30, 1.2, clock=clock)
    granted = expected = 0
    for _ in range(600):
        clock._now += rng.choice([0.001, 0.01, 0.1])
        for _ in range(rng.randrange(6)):
            granted += counter.try_acquire()
            expected += exact.try_acquire()
    assert granted >= expected - 30


def test_its_memory_does_not_grow_with_the_limit() -> None:
    clock = FakeClock()
    counter = SlidingCounter(10**6, 60.0, slices=20, clock=clock)
    for _ in range(30_000):
        clock._now += 0.01
        assert counter.try_acquire()
        assert len(counter._log) <= 21
    assert counter.snapshot()["utilization"] == pytest.approx(0.006, rel=0.1)
    assert counter.snapshot()["granted"] == 30_000


async def test_what_is_given_back_goes_to_the_next_at_once_and_old_permits_are_worth_nothing() -> (
    None
):
    clock = FakeClock()
    counter = SlidingCounter(10, 1.0, slices=4, clock=clock)
    early = await counter.reserve(6)
    await clock.advance(0.1)  # the same slice
    late = await counter.reserve(4)
    waiter = asyncio.create_task(counter.acquire(6))
    await clock.advance(0.0)
    early.cancel()
    await clock.advance(0.0)
    assert waiter.done()
    await clock.advance(2.0)
    assert counter.try_acquire(10)
    late.cancel()
    assert not counter.try_acquire()


async def test_a_permit_given_back_is_taken_from_its_own_slice_and_from_no_later_one() -> None:
    clock = FakeClock()
    counter = SlidingCounter(10, 1.0, slices=4, clock=clock)
    early = await counter.reserve(5)
    await clock.advance(0.6)
    assert counter.try_acquire(5)
    early.cancel()
    await clock.advance(0.5)
    assert counter.try_acquire(5)
    assert not counter.try_acquire()


async def test_a_wait_that_is_too_long_is_refused_at_once_with_the_time_it_would_take() -> None:
    clock = FakeClock()
    counter = SlidingCounter(10, 1.0, clock=clock)
    assert counter.try_acquire(10)
    await clock.advance(0.25)
    with pytest.raises(RateLimitExceededError) as refused:
        await counter.acquire(max_wait=0.5)
    assert refused.value.retry_after == pytest.approx(0.75)
    assert clock.pending == 0


async def test_after_a_pause_permits_are_spread_over_the_first_window() -> None:
    clock, at = FakeClock(), list[float]()
    counter = SlidingCounter(10, 1.0, clock=clock)
    both = AllOf(counter, SlidingWindow(1000, 3600.0, clock=clock))
    both.pause(2.0)

    async def wait() -> None:
        await both.acquire()
        at.append(clock.now() - 1000.0)

    tasks = [asyncio.create_task(wait()) for _ in range(20)]
    await clock.advance(8.0)
    await asyncio.gather(*tasks)
    assert at == pytest.approx([2.0 + number / 10 for number in range(20)], abs=0.021)
    counter.pause(2.0)
    await clock.advance(2.1)
    assert counter.try_acquire()
    assert not counter.try_acquire()


async def test_advice_and_a_line_hold_for_the_quick_way_too() -> None:
    clock = FakeClock()
    counter = SlidingCounter(10, 1.0, clock=clock)
    counter.observe({"RateLimit": '"d";r=4;t=2'})
    assert not counter.try_acquire()
    waiter = asyncio.create_task(counter.acquire())
    await clock.advance(0.0)
    clock._now += 60.0
    assert not counter.try_acquire()
    await clock.advance(0.0)
    assert waiter.done()
    assert counter.try_acquire()


def test_it_is_built_by_its_config_and_refuses_impossible_ones() -> None:
    built = RateLimitConfig(
        requests_per_second=1000, window=60.0, strategy=RateLimitStrategy.SLIDING_COUNTER
    ).build()
    assert isinstance(built, SlidingCounter)
    assert (built.limit, built.window) == (60_000, 60.0)
    for limit, window, slices in ((0, 1.0, 10), (1, 0.0, 10), (1, 1.0, 0)):
        with pytest.raises(ConfigurationError):
            SlidingCounter(limit, window, slices=slices)
