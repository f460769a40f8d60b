import asyncio
import contextlib
import math

import pytest
from pydantic import ValidationError

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    CallRefusedError,
    ConfigurationError,
    Event,
    HealthConfig,
    HealthLayer,
    HealthMonitor,
    HealthStatus,
    HealthStatusChanged,
    Inner,
    Listeners,
    Verdict,
    stack,
)
from shared.infrastructure.resilience.layer import PlainCall, Res, Settle
from shared.infrastructure.testing import FakeClock, ScriptedSend


async def play(monitor: HealthMonitor, clock: FakeClock, outcomes: str, every: float = 0.1) -> None:
    """Record an outcome each `every` seconds: `.` is good, `x` failed, `s` good but slow."""
    for outcome in outcomes:
        await clock.advance(every)
        monitor.record(outcome != "x", 9.0 if outcome == "s" else 0.01)


def test_it_knows_nothing_until_something_was_recorded() -> None:
    monitor = HealthMonitor()
    assert monitor.status is HealthStatus.UNKNOWN
    snapshot = monitor.snapshot()
    for key in ("uptime_percentage", "error_rate", "response_time_p95", "seconds_since_check"):
        assert snapshot[key] is None


def test_the_first_outcome_ends_the_unknown() -> None:
    good, bad = HealthMonitor(), HealthMonitor()
    good.record(True, 0.01)
    bad.record(False, 0.01)
    assert good.status is HealthStatus.HEALTHY
    assert bad.status is HealthStatus.DEGRADED


async def test_failures_in_a_row_degrade_and_then_make_unhealthy() -> None:
    told: list[Event] = []
    clock = FakeClock()
    monitor = HealthMonitor("db", clock=clock, listeners=Listeners([told.append]))
    await play(monitor, clock, "....")
    for _ in range(3):
        monitor.record(False, 0.5, "refused")
    assert monitor.status is HealthStatus.UNHEALTHY
    assert monitor.snapshot()["consecutive_failures"] == 3
    assert monitor.snapshot()["last_error"] == "refused"
    assert told == [
        HealthStatusChanged("db", "unknown", "healthy"),
        HealthStatusChanged("db", "healthy", "degraded"),
        HealthStatusChanged("db", "degraded", "unhealthy"),
    ]


async def test_a_few_failures_in_a_row_among_many_good_calls_are_not_yet_unhealthy() -> None:
    clock = FakeClock()
    monitor = HealthMonitor(clock=clock)
    await play(monitor, clock, "." * 100 + "xxxx")
    assert monitor.status is HealthStatus.DEGRADED


async def test_one_failure_among_many_good_calls_changes_nothing() -> None:
    clock = FakeClock()
    monitor = HealthMonitor(clock=clock)
    await play(monitor, clock, "." * 100 + "x")
    assert monitor.status is HealthStatus.HEALTHY
    assert monitor.snapshot()["consecutive_failures"] == 1
    assert monitor.snapshot()["error_rate"] == pytest.approx(1 / 64, rel=0.1)
    await play(monitor, clock, ".x.")
    assert monitor.snapshot()["consecutive_failures"] == 0


async def test_a_service_that_fails_every_other_call_is_unhealthy_until_below_a_quarter() -> None:
    clock = FakeClock()
    monitor = HealthMonitor(clock=clock, config=HealthConfig(minimum_calls=20))
    await play(monitor, clock, ".x" * 9)
    assert monitor.status is HealthStatus.DEGRADED
    await play(monitor, clock, ".x" * 60)
    assert monitor.status is HealthStatus.UNHEALTHY
    await play(monitor, clock, "..x" * 100)
    assert monitor.snapshot()["error_rate"] == pytest.approx(0.33, abs=0.02)
    assert monitor.status is HealthStatus.UNHEALTHY
    await play(monitor, clock, "....x" * 100)
    assert monitor.status is HealthStatus.DEGRADED
    await play(monitor, clock, "..x" * 100)
    assert monitor.status is HealthStatus.DEGRADED


async def test_a_status_gets_better_only_after_a_while_and_some_successes_in_a_row() -> None:
    clock = FakeClock()
    monitor = HealthMonitor(clock=clock, config=HealthConfig(dwell=50.0, healthy_after=3))
    await play(monitor, clock, "xxx")
    await play(monitor, clock, "." * 49, every=1.0)
    assert monitor.status is HealthStatus.UNHEALTHY
    await play(monitor, clock, ".", every=1.0)
    assert monitor.status is HealthStatus.HEALTHY
    await play(monitor, clock, "xxx", every=1.0)
    await play(monitor, clock, "." * 49, every=1.0)
    assert monitor.status is HealthStatus.UNHEALTHY
    assert monitor.snapshot()["seconds_in_status"] == pytest.approx(49.0)
    await play(monitor, clock, "x", every=500.0)
    await play(monitor, clock, "..", every=1.0)
    assert monitor.status is HealthStatus.UNHEALTHY
    await play(monitor, clock, ".", every=1.0)
    assert monitor.status is HealthStatus.DEGRADED


async def test_a_status_gets_worse_at_once() -> None:
    clock = FakeClock()
    monitor = HealthMonitor(clock=clock, config=HealthConfig(dwell=1000.0))
    await play(monitor, clock, ".xxx", every=0.0)
    assert monitor.status is HealthStatus.UNHEALTHY


async def test_slow_answers_degrade_until_they_fade() -> None:
    clock = FakeClock()
    monitor = HealthMonitor(clock=clock, config=HealthConfig(degraded_response_time=0.5))
    await play(monitor, clock, ".")
    assert monitor.status is HealthStatus.HEALTHY
    await play(monitor, clock, "ss", every=2.0)
    assert monitor.status is HealthStatus.DEGRADED
    await play(monitor, clock, "." * 40, every=1.0)
    assert monitor.status is HealthStatus.HEALTHY


async def test_quick_successes_that_are_only_counted_weigh_as_much_as_others() -> None:
    clock = FakeClock()
    monitor = HealthMonitor(clock=clock)
    await play(monitor, clock, "." * 9, every=0.1)
    for _ in range(991):
        monitor.record(True, 1.01)
    await clock.advance(100.0)
    monitor.record(False, 0.0)
    # The thousand are ten time constants old, so they weigh as much as 0.045 of a call.
    weight = 1000 * math.exp(-10)
    snapshot = monitor.snapshot()
    assert snapshot["error_rate"] == pytest.approx(1 / (1 + weight), rel=1e-3)
    assert snapshot["recent_response_time"] == pytest.approx(weight / (1 + weight), rel=0.01)


async def test_time_makes_the_difference_not_the_number_of_calls() -> None:
    rates = []
    for every in (0.01, 0.5):
        clock = FakeClock()
        monitor = HealthMonitor(clock=clock)
        await play(monitor, clock, "." * round(100 / every), every)
        await play(monitor, clock, "x" * round(10 / every), every)
        rates.append(monitor.snapshot()["error_rate"])
    assert rates == pytest.approx([1 - math.exp(-1)] * 2, abs=0.03)


async def test_only_the_last_100_outcomes_are_remembered() -> None:
    clock = FakeClock()
    monitor = HealthMonitor(clock=clock)
    await play(monitor, clock, "x" * 150, every=0.01)
    for number in range(1, 101):
        monitor.record(True, number / 100)
    await clock.advance(7.0)
    snapshot = monitor.snapshot()
    assert snapshot["checks"] == 100
    assert snapshot["uptime_percentage"] == 100.0
    assert snapshot["average_response_time"] == pytest.approx(0.505)
    assert snapshot["response_time_p50"] == 0.5
    assert snapshot["response_time_p95"] == 0.95
    assert snapshot["response_time"] == 1.0
    assert snapshot["seconds_since_check"] == pytest.approx(7.0)


async def test_traffic_speaks_for_health_but_refusals_and_cancellations_do_not() -> None:
    monitor = HealthMonitor()
    script = ScriptedSend[str](
        ["ok", ValueError("down"), CallRefusedError("no"), asyncio.CancelledError()]
    )
    send = stack(script, HealthLayer(monitor), semantics=PLAIN_CALL)
    for _ in range(4):
        with contextlib.suppress(ValueError, CallRefusedError, asyncio.CancelledError):
            await send("x")
    assert monitor.snapshot()["checks"] == 2
    assert monitor.snapshot()["uptime_percentage"] == 50.0
    assert monitor.snapshot()["last_error"] == "ValueError"


async def test_an_answer_speaks_when_it_is_over_and_its_time_is_that_to_its_beginning() -> None:
    clock = FakeClock()
    monitor = HealthMonitor(clock=clock)
    ends: list[Settle] = []

    class Streamed(PlainCall):
        def watch(self, response: Res, settle: Settle) -> Res:
            ends.append(settle)
            return response

    async def answer(_request: str) -> str:
        await clock.sleep(2.0)
        return "ok"

    layer, inner = HealthLayer(monitor, clock=clock), Inner(answer, Streamed())
    for _ in range(4):
        call = asyncio.ensure_future(layer("x", inner))
        await clock.advance(2.0)
        await call
    await clock.advance(60.0)
    assert monitor.snapshot()["checks"] == 0
    verdicts = [Verdict.OK, Verdict.BUSY, Verdict.FAILED, Verdict.VOID]
    for settle, verdict in zip(ends[:3], verdicts[:3], strict=True):
        settle(verdict)
    since = monitor.snapshot()["seconds_since_check"]
    ends[3](verdicts[3])
    assert monitor.snapshot()["seconds_since_check"] == since
    assert monitor.snapshot()["checks"] == 3
    assert monitor.snapshot()["uptime_percentage"] == pytest.approx(200 / 3)
    assert monitor.snapshot()["average_response_time"] == 2.0


@pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf])
def test_a_response_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="seconds"):
        HealthMonitor().record(True, seconds)


def test_a_threshold_that_could_never_be_left_is_refused() -> None:
    with pytest.raises(ValidationError, match="at most unhealthy_error_rate"):
        HealthConfig(unhealthy_error_rate=0.2)
