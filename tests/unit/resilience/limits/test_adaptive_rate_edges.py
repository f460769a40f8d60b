"""What an adaptive rate does at the very instants where it turns, and with what is given back."""

import math

import pytest

from shared.infrastructure.resilience import (
    AdaptiveRate,
    AdaptiveRateConfig,
    AllOf,
    TokenBucket,
    Verdict,
)
from shared.infrastructure.testing import FakeClock

OK, BUSY = Verdict.OK, Verdict.BUSY


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def limited(clock: FakeClock, rate: float | None = 8.0, burst: int = 4) -> AdaptiveRate:
    """Return a limiter that begins at `rate`."""
    return AdaptiveRate(AdaptiveRateConfig(initial_rate=rate, burst_size=burst), clock=clock)


def fallen(clock: FakeClock) -> AdaptiveRate:
    """Return a limiter whose rate has just fallen from 8 to 5.6 permits per second."""
    limiter = limited(clock)
    assert limiter.try_acquire(4)
    limiter.record(BUSY)
    assert limiter.rate == pytest.approx(5.6)
    return limiter


def test_it_counts_what_it_grants(clock: FakeClock) -> None:
    limiter = limited(clock)
    assert limiter.try_acquire(1.5)
    assert limiter.try_acquire()
    assert limiter.snapshot()["granted"] == 2.5


def test_what_is_charged_after_a_quiet_time_counts_in_full(clock: FakeClock) -> None:
    limiter = limited(clock)
    clock.stall(10.0)
    limiter.charge(4, clock.now())
    assert limiter.utilization == 1.0


def test_a_permit_is_there_in_time_whatever_the_rounding_of_a_fast_rate(clock: FakeClock) -> None:
    limiter = limited(clock, rate=1000.0)
    assert limiter.try_acquire(100.0)
    clock.stall(0.001)
    assert limiter.delay(1.0, clock.now()) == 0.0
    assert limiter.try_acquire()


def test_parts_of_permits_are_measured_as_such(clock: FakeClock) -> None:
    limiter = limited(clock)
    for _ in range(20):
        assert limiter.try_acquire(0.25)
        clock.stall(0.5)
    assert limiter.snapshot()["measured_rate"] == pytest.approx(0.5)


def test_after_a_pause_permits_are_spread_for_as_long_as_a_burst_takes_to_come_back(
    clock: FakeClock,
) -> None:
    assert limited(clock, rate=None).ramp_time == 0.0
    assert limited(clock).ramp_time == 0.5
    assert fallen(clock).ramp_time == pytest.approx(4 / 5.6)


def test_successes_move_the_rate_once_in_a_64th_of_a_second(clock: FakeClock) -> None:
    limiter = fallen(clock)
    for _ in range(2):
        before = limiter.rate
        clock.stall(1 / 64 - 1 / 8192)
        limiter.record(OK)
        assert limiter.rate == before
        clock.stall(1 / 8192)
        limiter.record(OK)
        assert limiter.rate > before


def test_a_rate_that_grows_does_not_fill_the_bucket_for_the_time_before(clock: FakeClock) -> None:
    limiter = limited(clock, rate=1.0)
    assert limiter.try_acquire(4)
    clock.stall(2.0)
    limiter.record(OK)
    assert limiter.rate > 2.0
    assert limiter.utilization == 0.5


def test_a_call_that_began_at_the_instant_of_a_fall_is_no_news(clock: FakeClock) -> None:
    limiter = fallen(clock)
    clock.stall(0.25)
    limiter.record(BUSY, granted_at=limiter.last_granted_at)
    assert limiter.rate == pytest.approx(5.6)


@pytest.mark.parametrize("pause", [0.25, 0.0, -1.0, math.nan])
def test_a_short_pause_is_no_time_to_grow_in_and_no_pause_changes_nothing(
    clock: FakeClock, pause: float
) -> None:
    limiter = fallen(clock)
    limiter.pause(pause)
    clock.stall(1.25 if pause > 0.0 else 1.0)
    limiter.record(OK)
    way_back = (0.3 * 8.0 / 0.4) ** (1 / 3)
    assert limiter.rate == pytest.approx(0.4 * (1.0 - way_back) ** 3 + 8.0)


def test_permits_that_are_given_back_are_there_again(clock: FakeClock) -> None:
    limiter = limited(clock)
    reservation = limiter.try_reserve(4)
    assert reservation is not None
    assert not limiter.try_acquire()
    reservation.cancel()
    assert limiter.try_acquire(4)
    assert not limiter.try_acquire()


def test_what_is_charged_at_the_very_end_of_a_pause_comes_back(clock: FakeClock) -> None:
    limiter = limited(clock)
    limiter.pause(1.0)
    clock.stall(1.0)
    limiter.charge(2, clock.now())
    limiter.refund(2, granted_at=clock.now())
    assert limiter.delay(1, clock.now()) == 1 / 8


def test_advice_of_the_service_spaces_permits_and_refuses_none_for_good(clock: FakeClock) -> None:
    limiter = limited(clock)
    limiter.observe({"x-ratelimit-remaining": "4", "x-ratelimit-reset": "8"})
    for _ in range(2):
        assert not limiter.try_acquire()
        clock.stall(2.0)
        assert limiter.try_acquire()


@pytest.mark.parametrize("rate", [None, 8.0])
@pytest.mark.parametrize("is_shared", [False, True])
def test_after_a_pause_in_which_the_rate_fell_nobody_bursts(
    clock: FakeClock, rate: float | None, is_shared: bool
) -> None:
    limiter = limited(clock, rate)
    paused = AllOf(limiter, TokenBucket(1.0, clock=clock)) if is_shared else limiter
    assert paused.try_acquire()
    paused.pause(8.0)
    clock.stall(3.0)
    paused.charge(1.0, clock.now())
    clock.stall(1.0)
    paused.record(BUSY)
    clock.stall(4.0)
    assert limiter.utilization == 1.0


def test_a_debt_made_in_a_pause_is_paid_off_after_it_at_the_rate_of_then(clock: FakeClock) -> None:
    limiter = limited(clock)
    reservation = limiter.try_reserve(4)
    assert reservation is not None
    limiter.pause(8.0)
    reservation.commit(7)
    clock.stall(4.0)
    limiter.record(BUSY)
    clock.stall(4.0)
    assert limiter.delay(1.0, clock.now()) == pytest.approx((3 + 1) / limiter.rate)
