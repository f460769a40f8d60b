"""What limiters do at the very instants and amounts where their behaviour turns."""

import asyncio
import math
from collections.abc import Callable

import pytest

from shared.infrastructure.resilience import (
    AllOf,
    ConfigurationError,
    RateLimiter,
    RateLimitExceededError,
    SlidingWindow,
    TokenBucket,
    Verdict,
)
from shared.infrastructure.resilience.limits.pacing import Pacing
from shared.infrastructure.testing import FakeClock

# Rates and spans are powers of two, so that instants are exact.
BUILDERS: list[Callable[[FakeClock], RateLimiter]] = [
    lambda clock: TokenBucket(8.0, 4, clock=clock),
    lambda clock: SlidingWindow(4, 0.5, clock=clock),
    lambda clock: AllOf(TokenBucket(8.0, 4, clock=clock), SlidingWindow(8, 1.0, clock=clock)),
]
EACH = pytest.mark.parametrize("build", BUILDERS, ids=["bucket", "window", "both"])


@pytest.mark.parametrize(
    ("rate", "burst"), [(100.0, 10), (110.0, 11), (25.0, 2), (10.0, 1), (5.0, 1), (0.1, 1)]
)
def test_a_bucket_bursts_by_a_tenth_of_a_seconds_worth_and_at_least_one(
    rate: float, burst: int
) -> None:
    bucket = TokenBucket(rate, clock=FakeClock())
    assert (bucket.burst, bucket.capacity) == (burst, float(burst))


def test_a_window_is_a_second_long_unless_told_otherwise() -> None:
    assert SlidingWindow(5, clock=FakeClock()).window == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SlidingWindow(0, 1.0),
        lambda: SlidingWindow(1, 0.0),
        lambda: SlidingWindow(1, -1.0),
        lambda: TokenBucket(0.0),
        lambda: TokenBucket(1.0, 0),
    ],
)
def test_limits_that_permit_nothing_are_configuration_errors(
    wrong: Callable[[], RateLimiter],
) -> None:
    with pytest.raises(ConfigurationError, match="above 0"):
        wrong()


def test_after_a_pause_permits_are_spread_for_as_long_as_a_burst_takes_to_come_back() -> None:
    clock = FakeClock()
    assert TokenBucket(8.0, 4, clock=clock).ramp_time == 0.5
    assert SlidingWindow(4, 2.0, clock=clock).ramp_time == 2.0


def test_the_bound_of_a_span_is_that_of_the_whole_windows_it_may_touch() -> None:
    clock = FakeClock()
    window = SlidingWindow(3, 2.0, clock=clock)
    assert [window.most_within(seconds) for seconds in (1.0, 2.0, 2.5, 4.0)] == [3, 3, 6, 6]
    assert TokenBucket(8.0, 4, clock=clock).most_within(2.0) == 20.0
    both = AllOf(window, TokenBucket(8.0, 4, clock=clock))
    assert both.most_within(2.0) == 3.0


@EACH
async def test_it_counts_what_it_grants_and_refuses_from_nothing(
    build: Callable[[FakeClock], RateLimiter],
) -> None:
    clock = FakeClock()
    limiter = build(clock)
    assert limiter.last_granted_at == -math.inf
    assert limiter.snapshot() == {
        "utilization": 0.0,
        "capacity": 4.0,
        "waiting": 0,
        "granted": 0.0,
        "refused_count": 0,
        "paused_for": 0.0,
    }
    await limiter.acquire(4)
    for refused in (1, 2):
        with pytest.raises(RateLimitExceededError):
            await limiter.acquire(max_wait=0.0)
        assert limiter.snapshot()["refused_count"] == refused
    limiter.pause(2.0)
    snapshot = limiter.snapshot()
    assert (snapshot["granted"], snapshot["paused_for"], snapshot["utilization"]) == (4.0, 2.0, 1.0)


@EACH
async def test_a_permit_that_comes_exactly_in_time_is_waited_for(
    build: Callable[[FakeClock], RateLimiter],
) -> None:
    clock = FakeClock()
    limiter = build(clock)
    await limiter.acquire(4)
    call = asyncio.create_task(limiter.acquire(4, max_wait=0.5))
    await clock.advance(0.5)
    assert call.done()
    assert call.exception() is None


async def test_who_waited_in_vain_is_told_when_a_permit_would_come() -> None:
    clock = FakeClock()
    bucket = TokenBucket(8.0, 4, clock=clock)
    await bucket.acquire(4)
    call = asyncio.create_task(bucket.acquire(2, max_wait=1.0))
    await clock.advance()
    bucket.pause(10.0)
    await clock.advance(1.0)
    with pytest.raises(RateLimitExceededError) as refused:
        await call
    # 9 seconds of the pause are left, and then the bucket fills from nothing.
    assert refused.value.retry_after == pytest.approx(9.0 + 2 / 8)
    assert bucket.snapshot()["refused_count"] == 1


async def test_at_the_very_end_of_a_window_its_permits_are_there_again() -> None:
    clock = FakeClock()
    window = SlidingWindow(4, 0.5, clock=clock)
    assert window.try_acquire(4)
    clock.stall(0.5)
    assert window.try_acquire(4)
    assert not window.try_acquire()


def test_the_wait_for_more_than_a_window_holds_is_one_of_whole_windows() -> None:
    clock = FakeClock()
    window = SlidingWindow(4, 2.0, clock=clock)
    assert window.try_acquire(4)
    assert window.delay(8.0, clock.now()) == 4.0
    assert window.delay(9.0, clock.now()) == 6.0
    clock.stall(100.0)
    assert window.delay(8.0, clock.now()) == 2.0
    assert window.delay(9.0, clock.now()) == 4.0
    assert window.delay(4.0, clock.now()) == 0.0


def test_to_settle_a_permit_for_its_estimate_is_no_new_grant() -> None:
    clock = FakeClock()
    bucket = TokenBucket(8.0, 4, clock=clock)
    reservation = bucket.try_reserve(2)
    assert reservation is not None
    granted_at = clock.now()
    clock.stall(1.0)
    reservation.commit(2)
    assert bucket.last_granted_at == granted_at


def test_after_its_block_a_reservation_is_settled() -> None:
    bucket = TokenBucket(8.0, 4, clock=FakeClock())
    reservation = bucket.try_reserve(4)
    assert reservation is not None
    with reservation:
        pass
    reservation.cancel()
    assert bucket.snapshot()["granted"] == 4


def test_what_is_charged_at_the_very_end_of_a_pause_can_be_given_back() -> None:
    clock = FakeClock()
    bucket = TokenBucket(8.0, 4, clock=clock)
    bucket.pause(1.0)
    clock.stall(1.0)
    bucket.charge(2, clock.now())
    bucket.refund(2, granted_at=clock.now())
    assert bucket.delay(1, clock.now()) == 1 / 8


async def test_a_permit_given_back_at_the_very_beginning_of_a_ramp_goes_to_the_next() -> None:
    clock = FakeClock()
    window = SlidingWindow(4, 0.5, clock=clock)
    window.pause(1.0)
    clock.stall(1.0)
    reservation = window.try_reserve(1)
    assert reservation is not None
    assert not window.try_acquire()
    reservation.cancel()
    assert window.try_acquire()


async def test_permits_from_before_a_pause_are_no_head_start_for_a_heavy_one_after_it() -> None:
    clock = FakeClock()
    window = SlidingWindow(4, 0.5, clock=clock)
    early = window.try_reserve(4)
    assert early is not None
    window.pause(1.0)
    early.cancel()
    clock.stall(1.0)
    assert window.delay(4, clock.now()) == 3 / 8


async def test_headers_are_read_for_requests_unless_told_otherwise() -> None:
    clock = FakeClock()
    bucket = TokenBucket(8.0, 4, clock=clock)
    bucket.observe(
        {
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "90s",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "3s",
        }
    )
    assert bucket.snapshot()["paused_for"] == 3.0


async def test_a_quota_that_just_lasts_spaces_nothing() -> None:
    clock = FakeClock()
    window = SlidingWindow(4, 1.0, clock=clock)
    window.observe({"x-ratelimit-remaining": "4", "x-ratelimit-reset": "1"})
    assert all(window.try_acquire() for _ in range(4))


async def test_advice_that_is_taken_back_lets_the_line_go_on_at_once() -> None:
    clock = FakeClock()
    bucket = TokenBucket(8.0, 4, clock=clock)
    bucket.observe({"x-ratelimit-remaining": "1", "x-ratelimit-reset": "60"})
    call = asyncio.create_task(bucket.acquire())
    await clock.advance(1.0)
    assert not call.done()
    bucket.observe({"x-ratelimit-remaining": "1000", "x-ratelimit-reset": "60"})
    await clock.advance()
    assert call.done()


def test_spacing_counts_what_a_heavy_permit_has_used_ahead() -> None:
    pacing = Pacing()
    pacing.start(0.0, 1.0, until=100.0)
    pacing.spend(3.0, now=1.0)
    assert pacing.delay(1.0, now=1.0) == 3.0
    pacing.unspend(2.0)
    assert pacing.delay(1.0, now=1.0) == 1.0


def test_spacing_that_has_just_ended_begins_anew_from_now() -> None:
    pacing = Pacing()
    pacing.start(9.5, 1.0, until=10.0)
    pacing.change(1.0, until=20.0, now=10.0)
    assert pacing.delay(1.0, now=10.0) == 1.0
    pacing.change(2.0, until=20.0, now=10.5)
    assert pacing.delay(1.0, now=10.5) == 1.5


class _Learner(TokenBucket):
    """Remembers what it is told."""

    adapts = True

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(8.0, 4, clock=clock)
        self.told: list[tuple[Verdict, float]] = []

    def record(self, verdict: Verdict, *, granted_at: float = math.inf) -> None:
        self.told.append((verdict, granted_at))


def test_several_limits_adapt_if_one_of_them_does_and_tell_it_what_came_of_a_call() -> None:
    clock = FakeClock()
    plain, learner = TokenBucket(8.0, clock=clock), _Learner(clock)
    assert not plain.adapts
    assert not AllOf(plain).adapts
    both = AllOf(plain, learner)
    assert both.adapts
    both.record(Verdict.BUSY, granted_at=5.0)
    assert learner.told == [(Verdict.BUSY, 5.0)]
