"""The real clock, without waiting for it."""

import asyncio

from shared.infrastructure.resilience import MONOTONIC, SystemClock


async def test_the_system_clock_counts_up_sleeps_and_fires_timers_that_were_not_called_off() -> (
    None
):
    fired: list[str] = []
    clock = SystemClock()
    before = clock.now()
    clock.call_later(0.0, lambda: fired.append("fired"))
    clock.call_later(0.0, lambda: fired.append("called off")).cancel()
    clock.call_later(3600.0, lambda: fired.append("late")).cancel()
    await clock.sleep(0.0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert fired == ["fired"]
    assert clock.now() >= before
    assert MONOTONIC.now() >= before


async def test_to_sleep_takes_the_time_it_is_asked_for() -> None:
    clock = SystemClock()
    sleeper = asyncio.ensure_future(clock.sleep(3600.0))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not sleeper.done()
    sleeper.cancel()
