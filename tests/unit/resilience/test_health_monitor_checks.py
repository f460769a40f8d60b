import asyncio
import random

import pytest

from shared.infrastructure.resilience import HealthConfig, HealthMonitor, HealthStatus
from shared.infrastructure.testing import FakeClock


class Target:
    """Something to check: notes the instants at which it is asked."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._began = clock.now()
        self.is_down = False
        self.takes = 0.0
        self.asked: list[float] = []

    async def __call__(self) -> None:
        self.asked.append(self._clock.now() - self._began)
        if self.takes:
            await self._clock.sleep(self.takes)
        if self.is_down:
            raise ConnectionError("refused")


async def test_active_checks_run_at_their_interval_until_stopped() -> None:
    clock = FakeClock()
    target = Target(clock)
    monitor = HealthMonitor("db", target, HealthConfig(jitter=0.0), clock=clock)
    monitor.start()
    monitor.start()
    await clock.advance(60.0)
    assert target.asked == [0.0, 30.0, 60.0]
    assert monitor.snapshot()["checks"] == 3
    assert monitor.snapshot()["seconds_since_check"] == 0.0
    await monitor.stop()
    await clock.advance(60.0)
    assert len(target.asked) == 3
    assert clock.pending == 0


async def test_monitors_started_together_do_not_go_on_together() -> None:
    clock = FakeClock()
    targets = [Target(clock) for _ in range(20)]
    monitors = [
        HealthMonitor(str(n), target, clock=clock, rng=random.Random(n))
        for n, target in enumerate(targets)
    ]
    for monitor in monitors:
        monitor.start()
    await clock.advance(34.0)
    second = [target.asked[1] for target in targets]
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
    assert monitor.snapshot()["response_time"] == 5.0
    assert "DeadlineExceededError" in monitor.snapshot()["last_error"]


async def test_a_cancelled_check_says_nothing() -> None:
    clock = FakeClock()
    monitor = HealthMonitor("db", lambda: clock.sleep(1.0), clock=clock)
    task = asyncio.create_task(monitor.check())
    await clock.advance(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert monitor.status is HealthStatus.UNKNOWN


async def test_no_check_is_made_while_traffic_speaks() -> None:
    clock = FakeClock()
    target = Target(clock)
    config = HealthConfig(jitter=0.0, edge_interval=None)
    monitor = HealthMonitor("db", target, config, clock=clock)
    monitor.start()
    for _ in range(9):
        await clock.advance(10.0)
        monitor.record(False, 0.1)
    assert target.asked == [0.0]
    assert monitor.snapshot()["skipped_checks"] == 3
    await clock.advance(60.0)
    assert target.asked == [0.0, 120.0, 150.0]
    await monitor.stop()


async def test_a_check_of_its_own_does_not_keep_the_next_one_away() -> None:
    clock = FakeClock()
    target = Target(clock)
    config = HealthConfig(interval=10.0, jitter=0.1)
    monitor = HealthMonitor("db", target, config, clock=clock, rng=random.Random(1))
    monitor.start()
    await clock.advance(100.0)
    assert len(target.asked) >= 10
    await monitor.stop()


async def test_a_change_is_followed_up_quickly_and_a_settled_status_is_not() -> None:
    clock = FakeClock()
    target = Target(clock)
    config = HealthConfig(jitter=0.0, edge_interval=1.0)
    monitor = HealthMonitor("db", target, config, clock=clock)
    monitor.start()
    await clock.advance(29.0)
    target.is_down = True
    await clock.advance(62.0)
    assert target.asked == [0.0, 30.0, 31.0, 32.0, 62.0]
    assert monitor.status is HealthStatus.UNHEALTHY
    target.is_down = False
    await clock.advance(33.0)
    assert target.asked[5:] == [92.0, 93.0, 123.0]
    assert monitor.status is HealthStatus.HEALTHY
    await monitor.stop()


async def test_a_service_that_is_slow_but_steady_is_checked_at_the_usual_pace() -> None:
    clock = FakeClock()
    target = Target(clock)
    target.takes = 1.0
    config = HealthConfig(jitter=0.0, edge_interval=5.0, degraded_response_time=0.5)
    monitor = HealthMonitor("db", target, config, clock=clock)
    monitor.start()
    await clock.advance(70.0)
    assert monitor.status is HealthStatus.DEGRADED
    assert target.asked == [0.0, 6.0, 37.0, 68.0]
    await monitor.stop()


async def test_without_an_edge_interval_the_pace_is_always_the_same() -> None:
    clock = FakeClock()
    target = Target(clock)
    target.is_down = True
    config = HealthConfig(jitter=0.0, edge_interval=None)
    monitor = HealthMonitor("db", target, config, clock=clock)
    monitor.start()
    await clock.advance(60.0)
    assert target.asked == [0.0, 30.0, 60.0]
    assert monitor.status is HealthStatus.UNHEALTHY
    await monitor.stop()


async def test_an_edge_interval_longer_than_the_interval_does_not_slow_it_down() -> None:
    clock = FakeClock()
    target = Target(clock)
    target.is_down = True
    config = HealthConfig(interval=2.0, edge_interval=60.0, jitter=0.0)
    monitor = HealthMonitor("db", target, config, clock=clock)
    monitor.start()
    await clock.advance(4.0)
    assert target.asked == [0.0, 2.0, 4.0]
    await monitor.stop()


async def test_without_a_check_there_is_nothing_to_start() -> None:
    clock = FakeClock()
    monitor = HealthMonitor("db", clock=clock)
    monitor.start()
    assert await monitor.check() is HealthStatus.UNKNOWN
    assert clock.pending == 0
    await monitor.stop()
