import asyncio

from shared.infrastructure.resilience import (
    PLAIN_CALL,
    AdaptiveBulkheadConfig,
    AdaptiveRateConfig,
    AdaptiveTimeoutConfig,
    BulkheadConfig,
    CallQueued,
    EndpointGuard,
    Event,
    HealthMonitor,
    Listeners,
    RateLimitConfig,
    stack,
)
from shared.infrastructure.testing import FakeClock


def test_what_adapts_takes_the_place_of_what_is_fixed() -> None:
    guard = EndpointGuard(
        "llm",
        health=HealthMonitor("llm"),
        circuit_breaker=None,
        rate_limit=AdaptiveRateConfig(),
        bulkhead=AdaptiveBulkheadConfig(),
        attempt_timeout=AdaptiveTimeoutConfig(maximum=30.0),
    )
    assert [type(layer).__name__ for layer in guard.layers] == [
        "RateLimitLayer",
        "AdaptiveBulkheadLayer",
        "HealthLayer",
        "AdaptiveTimeoutLayer",
    ]
    snapshot = guard.snapshot()
    assert snapshot["rate_limiter"]["enabled"] is True
    assert "unloaded_latency" in snapshot["bulkhead"]


async def test_its_lines_tell_the_listeners_by_its_name_and_on_its_clock() -> None:
    for bulkhead in (
        BulkheadConfig(max_concurrent=1),
        AdaptiveBulkheadConfig(initial_concurrent=1),
    ):
        clock = FakeClock()
        told: list[Event] = []
        guard = EndpointGuard(
            "llm",
            health=HealthMonitor("llm", clock=clock),
            circuit_breaker=None,
            rate_limit=RateLimitConfig(requests_per_second=1.0, burst_size=1),
            bulkhead=bulkhead,
            clock=clock,
            listeners=Listeners([told.append]),
        )

        async def work(seconds: float, clock: FakeClock = clock) -> None:
            await clock.sleep(seconds)

        send = stack(work, *guard.layers, semantics=PLAIN_CALL)
        calls = [asyncio.create_task(send(4.0)) for _ in range(2)]
        await clock.advance(8.0)
        assert all(call.done() for call in calls)
        queued = [event for event in told if isinstance(event, CallQueued)]
        assert queued == [
            CallQueued("llm", "rate limiter", 1.0),
            CallQueued("llm", "bulkhead", 3.0),
        ]
