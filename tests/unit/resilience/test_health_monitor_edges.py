"""A health monitor at the very rates, times and counts where its status turns."""

import asyncio
import random

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    HealthConfig,
    HealthLayer,
    HealthMonitor,
    HealthStatus,
    Verdict,
    stack,
)
from shared.infrastructure.testing import FakeClock

EAGER = HealthConfig(
    minimum_calls=4,
    unhealthy_after=99,
    unhealthy_error_rate=0.5,
    recovered_error_rate=0.25,
    degraded_error_rate=0.25,
    healthy_after=1,
    dwell=0.0,
)


def after(config: HealthConfig, outcomes: str) -> HealthStatus:
    """Return the status after outcomes at one instant, + good and - bad."""
    monitor = HealthMonitor(config=config, clock=FakeClock(0.0))
    for outcome in outcomes:
        monitor.record(outcome == "+", 0.5)
    return monitor.status


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [("++--", "unhealthy"), ("--+", "degraded"), ("+++-", "degraded"), ("++++-", "healthy")],
)
def test_a_status_turns_at_the_very_rate_and_number_of_calls(outcomes: str, status: str) -> None:
    assert after(EAGER, outcomes) == status


def test_failures_in_a_row_count_from_the_very_rate_of_recovery_on() -> None:
    config = EAGER.model_copy(update={"unhealthy_after": 1, "minimum_calls": 99})
    assert after(config, "+++-") is HealthStatus.UNHEALTHY
    assert after(config, "++++-") is HealthStatus.HEALTHY


def test_answers_are_slow_from_the_very_mean_on() -> None:
    config = HealthConfig(degraded_response_time=2.0)
    for times, status in [([2.0], "degraded"), ([1.5], "healthy"), ([2.5], "degraded")]:
        monitor = HealthMonitor(config=config, clock=FakeClock(0.0))
        for seconds in times:
            monitor.record(True, seconds)
        assert monitor.status == status


def test_a_status_gets_better_at_the_very_end_of_its_dwell() -> None:
    clock = FakeClock(0.0)
    config = EAGER.model_copy(update={"dwell": 8.0, "time_constant": 0.125})
    monitor = HealthMonitor(config=config, clock=clock)
    monitor.record(False, 0.5)
    assert monitor.status is HealthStatus.DEGRADED
    clock.stall(7.5)
    monitor.record(True, 0.5)
    assert monitor.status is HealthStatus.DEGRADED
    clock.stall(0.5)
    monitor.record(True, 0.5)
    assert monitor.status is HealthStatus.HEALTHY


def test_quick_successes_weigh_in_as_soon_as_somebody_looks() -> None:
    monitor = HealthMonitor(clock=FakeClock(0.0))
    expected: list[float] = []
    for seconds in (1.0, 3.0, 4.0, 2.0, 5.0, 3.0):
        monitor.record(True, seconds)
        expected.append(seconds)
        if len(expected) % 2 == 0:
            mean = sum(expected) / len(expected)
            assert monitor.snapshot()["recent_response_time"] == pytest.approx(mean)
            assert monitor.snapshot()["error_rate"] == 0.0


def test_a_failure_right_after_successes_is_none_of_them_and_a_void_is_nothing() -> None:
    clock = FakeClock(0.0)
    monitor = HealthMonitor(clock=clock)
    for verdict in (Verdict.OK, Verdict.OK, Verdict.VOID, Verdict.FAILED, Verdict.BUSY):
        monitor.settle(1.0, clock.now(), verdict)
    snapshot = monitor.snapshot()
    assert snapshot["checks"] == 4
    assert snapshot["error_rate"] == pytest.approx(0.25)
    assert snapshot["uptime_percentage"] == 75.0


def test_the_first_outcome_is_all_there_is() -> None:
    monitor = HealthMonitor(clock=FakeClock(0.0))
    assert monitor.name == "service"
    monitor.record(False, 4.0, "KeyError")
    snapshot = monitor.snapshot()
    assert (snapshot["error_rate"], snapshot["recent_response_time"]) == (1.0, 4.0)
    assert (snapshot["checks"], snapshot["last_error"]) == (1, "KeyError")


def test_percentiles_are_the_smallest_times_that_a_share_stays_within() -> None:
    monitor = HealthMonitor(config=HealthConfig(history=400), clock=FakeClock(0.0))
    for number in range(400, 0, -1):
        monitor.record(True, float(number))
    snapshot = monitor.snapshot()
    assert (snapshot["response_time_p50"], snapshot["response_time_p95"]) == (200.0, 380.0)
    assert snapshot["average_response_time"] == 200.5


class Latest(random.Random):
    """Draws the upper end of any range."""

    def uniform(self, a: float, b: float) -> float:
        return b


async def test_checks_are_an_interval_and_its_jitter_apart() -> None:
    clock = FakeClock()
    checked: list[float] = []

    async def check() -> None:
        checked.append(clock.now() - 1000.0)

    config = HealthConfig(interval=32.0, jitter=0.25, edge_interval=None)
    monitor = HealthMonitor("x", check, config, clock=clock, rng=Latest())
    monitor.start()
    await clock.advance(85.0)
    assert checked == [0.0, 40.0, 80.0]
    await monitor.stop()
    assert clock.pending == 0


async def test_to_stop_waits_until_the_check_under_way_has_cleaned_up() -> None:
    clock = FakeClock()
    cleaned: list[bool] = []

    async def check() -> None:
        try:
            await clock.sleep(3.0)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    monitor = HealthMonitor("x", check, clock=clock)
    monitor.start()
    await clock.advance(1.0)
    await monitor.stop()
    assert cleaned == [True]


async def test_a_failed_call_is_recorded_with_the_time_it_took() -> None:
    clock = FakeClock()
    monitor = HealthMonitor("x", clock=clock)

    async def fail(_request: str) -> None:
        await clock.sleep(2.0)
        raise KeyError("theirs")

    send = stack(fail, HealthLayer(monitor, clock=clock), semantics=PLAIN_CALL)
    call = asyncio.ensure_future(send("x"))
    await clock.advance(2.0)
    with pytest.raises(KeyError):
        await call
    snapshot = monitor.snapshot()
    assert (snapshot["response_time"], snapshot["last_error"]) == (2.0, "KeyError")
    assert snapshot["uptime_percentage"] == 0.0
