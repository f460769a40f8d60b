import asyncio
import contextlib
import random

import pytest

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    CallRefusedError,
    Event,
    HealthConfig,
    HealthLayer,
    HealthMonitor,
    HealthStatus,
    HealthStatusChanged,
    Listeners,
    stack,
)
from shared.infrastructure.testing import FakeClock, ScriptedSend


def test_it_knows_nothing_until_something_was_recorded() -> None:
    monitor = HealthMonitor()
    assert monitor.status is HealthStatus.UNKNOWN
    assert monitor.snapshot()["uptime_percentage"] is None


def test_failures_degrade_then_make_unhealthy_and_a_success_begins_the_way_back() -> None:
    told: list[Event] = []
    monitor = HealthMonitor("db", clock=FakeClock(), listeners=Listeners([told.append]))
    for _ in range(20):
        monitor.record(True, 0.01)
    for _ in range(3):
        monitor.record(False, 0.5, "refused")
    assert monitor.status is HealthStatus.UNHEALTHY
    assert monitor.snapshot()["consecutive_failures"] == 3
    assert monitor.snapshot()["last_error"] == "refused"
    monitor.record(True, 0.01)
    assert monitor.status is HealthStatus.DEGRADED
    changes = [event.new for event in told if isinstance(event, HealthStatusChanged)]
    assert changes == ["healthy", "degraded", "unhealthy", "degraded"]


def test_slow_answers_degrade() -> None:
    monitor = HealthMonitor(config=HealthConfig(degraded_response_time=0.5))
    monitor.record(True, 2.0)
    assert monitor.status is HealthStatus.DEGRADED


def test_only_the_last_100_checks_count() -> None:
    monitor = HealthMonitor(config=HealthConfig(unhealthy_after=1000))
    for _ in range(150):
        monitor.record(False, 9.0)
    for _ in range(100):
        monitor.record(True, 0.25)
    snapshot = monitor.snapshot()
    assert snapshot["checks"] == 100
    assert snapshot["uptime_percentage"] == 100.0
    assert snapshot["average_response_time"] == pytest.approx(0.25)
    assert snapshot["status"] == "healthy"


async def test_active_checks_run_at_their_interval_until_stopped() -> None:
    clock = FakeClock()
    checks: list[float] = []

    async def check() -> None:
        checks.append(clock.now())
        if len(checks) == 2:
            raise ConnectionError("refused")

    monitor = HealthMonitor("db", check, HealthConfig(interval=30.0, jitter=0.0), clock=clock)
    monitor.start()
    monitor.start()
    await clock.advance(60.0)
    assert [at - checks[0] for at in checks] == [0.0, 30.0, 60.0]
    assert monitor.snapshot()["checks"] == 3
    await monitor.stop()
    await clock.advance(60.0)
    assert len(checks) == 3
    assert clock.pending == 0


async def test_monitors_started_together_do_not_go_on_together() -> None:
    clock = FakeClock()
    checks: list[float] = []

    async def check() -> None:
        checks.append(clock.now())

    monitors = [HealthMonitor(str(n), check, clock=clock, rng=random.Random(n)) for n in range(20)]
    for monitor in monitors:
        monitor.start()
    await clock.advance(34.0)
    second = [at - checks[0] for at in checks[20:]]
    assert len(second) == 20
    assert len(set(second)) == 20
    assert all(27.0 <= at <= 33.0 for at in second)
    for monitor in monitors:
        await monitor.stop()


async def test_a_check_that_hangs_fails_at_its_timeout() -> None:
    clock = FakeClock()

    async def hang() -> None:
        await asyncio.get_running_loop().create_future()

    monitor = HealthMonitor("db", hang, HealthConfig(timeout=5.0), clock=clock)
    task = asyncio.create_task(monitor.check())
    await clock.advance(5.0)
    assert await task is HealthStatus.DEGRADED


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
