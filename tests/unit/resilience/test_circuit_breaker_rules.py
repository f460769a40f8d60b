import asyncio
import random

import pytest
from pydantic import ValidationError

from shared.infrastructure.resilience import (
    CallRefused,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    CircuitState,
    Event,
    Listeners,
    Verdict,
)
from shared.infrastructure.testing import FakeClock


def record(breaker: CircuitBreaker, outcomes: str) -> None:
    for outcome in outcomes:
        breaker.admit().settle(Verdict.FAILED if outcome == "x" else Verdict.OK)


async def test_a_service_that_fails_every_other_call_opens_it_once_there_are_enough_calls() -> None:
    breaker = CircuitBreaker("flaky", CircuitBreakerConfig(minimum_calls=20), clock=FakeClock())
    record(breaker, ".x" * 9)
    assert breaker.state is CircuitState.CLOSED
    record(breaker, ".x")
    assert breaker.state is CircuitState.OPEN


async def test_failures_out_of_the_window_no_longer_count() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(minimum_calls=10, window_seconds=10.0)
    breaker = CircuitBreaker("flaky", config, clock=clock)
    record(breaker, ".x" * 4)
    await clock.advance(11.0)
    record(breaker, ".x" * 4)
    assert breaker.state is CircuitState.CLOSED
    assert breaker.snapshot()["window_calls"] == 8
    await clock.advance(5.0)
    record(breaker, ".x")
    assert breaker.state is CircuitState.OPEN


async def test_a_window_of_calls_forgets_the_oldest_call_whatever_the_time() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(minimum_calls=4, window_calls=4, failure_rate=0.5)
    breaker = CircuitBreaker("rare", config, clock=clock)
    record(breaker, "x..")
    await clock.advance(3600.0)
    record(breaker, "..")
    assert breaker.snapshot()["window_failures"] == 0
    record(breaker, "x.")
    assert breaker.state is CircuitState.CLOSED
    record(breaker, "x")
    assert breaker.state is CircuitState.OPEN


async def test_the_rate_rule_can_be_left_out() -> None:
    breaker = CircuitBreaker("flaky", CircuitBreakerConfig(failure_rate=None), clock=FakeClock())
    record(breaker, ".x" * 200)
    assert breaker.state is CircuitState.CLOSED


async def test_slow_successes_open_it() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(slow_call_duration=1.0, slow_call_rate=0.8, minimum_calls=5)
    breaker = CircuitBreaker("slow", config, clock=clock)
    for seconds in (0.1, 1.0, 2.0, 3.0):
        permit = breaker.admit()
        await clock.advance(seconds)
        permit.settle(Verdict.OK)
    assert breaker.state is CircuitState.CLOSED
    permit = breaker.admit()
    await clock.advance(1.5)
    permit.settle(Verdict.OK)
    assert breaker.state is CircuitState.OPEN


async def test_calls_that_hang_count_as_slow_before_they_end_and_only_once() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(slow_call_duration=1.0, minimum_calls=5)
    breaker = CircuitBreaker("hung", config, clock=clock)
    hanging = [breaker.admit() for _ in range(5)]
    await clock.advance(0.9)
    breaker.admit().settle(Verdict.VOID)
    assert breaker.state is CircuitState.CLOSED
    await clock.advance(0.2)
    with pytest.raises(CircuitOpenError):
        breaker.check()
    for permit in hanging:
        permit.settle(Verdict.OK)
    assert breaker.snapshot()["stale_outcome_count"] == 5


async def test_a_slow_call_that_was_counted_and_then_fails_counts_in_the_streak_only() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(slow_call_duration=1.0, failure_threshold=2)
    breaker = CircuitBreaker("hung", config, clock=clock)
    hanging = breaker.admit()
    await clock.advance(2.0)
    breaker.admit().settle(Verdict.OK)
    hanging.settle(Verdict.FAILED)
    snapshot = breaker.snapshot()
    assert (snapshot["window_calls"], snapshot["window_slow_calls"]) == (2, 1)
    assert snapshot["failure_count"] == 1


async def test_the_open_time_doubles_with_each_failed_round_up_to_its_bound_with_jitter() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(failure_threshold=1, timeout=10.0, max_timeout=60.0)
    breaker = CircuitBreaker("down", config, clock=clock, rng=random.Random(3))
    record(breaker, "x")
    waits = []
    for _ in range(6):
        waits.append(breaker.snapshot()["retry_after"])
        await clock.advance(waits[-1])
        breaker.admit().settle(Verdict.FAILED)
    bounds = [(10, 10), (10, 20), (20, 40), (30, 60), (30, 60), (30, 60)]
    assert all(low <= wait <= high for wait, (low, high) in zip(waits, bounds, strict=True))
    assert len(set(waits[3:])) == 3


async def test_two_breakers_do_not_come_back_together() -> None:
    config = CircuitBreakerConfig(timeout=10.0)
    times = {config.open_time(2, random.Random(seed)) for seed in range(50)}
    assert len(times) == 50


async def test_closing_ends_the_growth() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(failure_threshold=1, success_threshold=1, timeout=10.0)
    breaker = CircuitBreaker("back", config, clock=clock)
    record(breaker, "x")
    await clock.advance(10.0)
    record(breaker, "x")
    await clock.advance(20.0)
    record(breaker, ".x")
    assert breaker.snapshot()["retry_after"] == 10.0


async def test_the_service_may_ask_for_a_time_up_to_the_bound() -> None:
    clock = FakeClock()
    breaker = CircuitBreaker("busy", CircuitBreakerConfig(max_timeout=100.0), clock=clock)
    breaker.open_for(30.0)
    assert breaker.snapshot()["retry_after"] == 30.0
    breaker.open_until(clock.now() + 10.0)
    assert breaker.snapshot()["retry_after"] == 30.0
    breaker.open_for(7200.0)
    assert breaker.snapshot()["retry_after"] == 100.0


async def test_a_ramp_lets_a_growing_share_through_and_ends() -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(
        failure_threshold=1, success_threshold=1, timeout=1.0, ramp_up=10.0
    )
    breaker = CircuitBreaker("shared", config, clock=clock, rng=random.Random(5))
    record(breaker, "x")
    await clock.advance(1.0)
    record(breaker, ".")

    def admitted() -> int:
        count = 0
        for _ in range(1000):
            try:
                breaker.admit().settle(Verdict.OK)
            except CircuitOpenError:
                continue
            count += 1
        return count

    assert 50 < admitted() < 150
    await clock.advance(5.0)
    assert 430 < admitted() < 570
    await clock.advance(5.0)
    assert admitted() == 1000
    assert breaker.admit() is breaker.admit()


async def test_switched_by_hand_it_stays_as_it_is_until_reset() -> None:
    clock = FakeClock()
    breaker = CircuitBreaker("manual", CircuitBreakerConfig(failure_threshold=1), clock=clock)
    breaker.force_open()
    await clock.advance(10_000.0)
    with pytest.raises(CircuitOpenError, match="by hand"):
        breaker.admit()
    breaker.disable()
    record(breaker, "x" * 50)
    assert breaker.state is CircuitState.DISABLED
    assert breaker.snapshot()["window_calls"] == 0
    breaker.metrics_only()
    record(breaker, "x" * 3)
    assert breaker.state is CircuitState.METRICS_ONLY
    assert breaker.snapshot()["would_open_count"] == 3
    breaker.reset()
    record(breaker, "x")
    assert breaker.state is CircuitState.OPEN


async def test_a_request_to_open_does_not_overrule_the_hand() -> None:
    breaker = CircuitBreaker("manual", clock=FakeClock())
    breaker.disable()
    breaker.open_for(10.0)
    assert breaker.state is CircuitState.DISABLED


def test_a_window_too_short_for_its_minimum_is_refused() -> None:
    with pytest.raises(ValidationError, match="minimum_calls"):
        CircuitBreakerConfig(window_calls=10, minimum_calls=20)


async def test_random_traffic_keeps_the_windows_totals_equal_to_a_recount() -> None:
    rng = random.Random(17)
    clock = FakeClock()
    config = CircuitBreakerConfig(failure_threshold=10_000, failure_rate=None, window_seconds=10.0)
    breaker = CircuitBreaker("window", config, clock=clock)
    log: list[tuple[float, bool]] = []
    for _ in range(2000):
        clock._now += rng.expovariate(5.0)
        failed = rng.random() < 0.3
        record(breaker, "x" if failed else ".")
        log.append((clock.now(), failed))
    await asyncio.sleep(0)
    snapshot = breaker.snapshot()
    slot = int(clock.now())  # slices of a second, forgotten whole
    recent = [failed for at, failed in log if int(at) > slot - 10]
    assert snapshot["window_calls"] == len(recent)
    assert snapshot["window_failures"] == sum(recent)


def test_a_refusal_is_an_event_that_says_when_to_come_back() -> None:
    clock = FakeClock()
    told: list[Event] = []
    breaker = CircuitBreaker(
        "orders",
        CircuitBreakerConfig(failure_threshold=1, timeout=10.0),
        clock=clock,
        listeners=Listeners([told.append]),
    )
    breaker.admit().settle(Verdict.FAILED)
    clock.stall(4.0)
    with pytest.raises(CircuitOpenError):
        breaker.admit()
    assert told[1:] == [CallRefused("orders", "circuit_open", retry_after=6.0)]


@pytest.mark.parametrize("switch", ["metrics_only", "reset", "disable"])
def test_a_switch_by_hand_ends_the_ramp(switch: str) -> None:
    clock = FakeClock()
    config = CircuitBreakerConfig(
        failure_threshold=1, success_threshold=1, timeout=1.0, ramp_up=100.0
    )
    breaker = CircuitBreaker("x", config, clock=clock)
    breaker.admit().settle(Verdict.FAILED)
    clock.stall(1.0)
    breaker.admit().settle(Verdict.OK)
    getattr(breaker, switch)()
    for _ in range(100):
        breaker.admit().settle(Verdict.OK)
    assert breaker.snapshot()["refused_count"] == 0
