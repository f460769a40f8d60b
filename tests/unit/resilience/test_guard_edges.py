"""Which layers a guard has, in which order, and what it reports of those it has not."""

from shared.infrastructure.resilience import (
    BulkheadConfig,
    CircuitBreakerConfig,
    EndpointGuard,
    HealthMonitor,
    RateLimitConfig,
)
from shared.infrastructure.testing import FakeClock

EVERYTHING = [
    "CircuitGate",
    "RateLimitLayer",
    "BulkheadLayer",
    "CircuitBreakerLayer",
    "HealthLayer",
    "AttemptTimeoutLayer",
]


def names(guard: EndpointGuard) -> list[str]:
    return [type(layer).__name__ for layer in guard.layers]


def test_a_guard_with_everything_has_its_layers_in_the_order_of_the_design() -> None:
    clock = FakeClock()
    guard = EndpointGuard(
        "llm",
        health=HealthMonitor("llm", clock=clock),
        circuit_breaker=CircuitBreakerConfig(),
        rate_limit=RateLimitConfig(requests_per_second=10.0),
        bulkhead=BulkheadConfig(max_concurrent=3),
        attempt_timeout=5.0,
        clock=clock,
    )
    assert names(guard) == EVERYTHING
    assert guard.breaker is not None
    assert (guard.name, guard.breaker.name) == ("llm", "llm")
    snapshot = guard.snapshot()
    assert set(snapshot) == {"circuit_breaker", "rate_limiter", "bulkhead", "health"}
    assert snapshot["circuit_breaker"]["enabled"] is True
    assert snapshot["circuit_breaker"]["state"] == "closed"
    assert snapshot["rate_limiter"]["enabled"] is True
    assert snapshot["bulkhead"]["enabled"] is True
    assert snapshot["bulkhead"]["max_concurrent"] == 3
    assert snapshot["health"]["status"] == "unknown"


def test_what_is_not_configured_is_left_out_and_reported_as_such() -> None:
    guard = EndpointGuard("llm", health=HealthMonitor("llm"), circuit_breaker=None)
    assert names(guard) == ["HealthLayer"]
    snapshot = guard.snapshot()
    for part in ("circuit_breaker", "rate_limiter", "bulkhead"):
        assert snapshot[part] == {"enabled": False}


def test_an_attempt_timeout_of_none_is_no_layer_and_any_other_is() -> None:
    guard = EndpointGuard(
        "llm", health=HealthMonitor("llm"), circuit_breaker=None, attempt_timeout=0.001
    )
    assert names(guard) == ["HealthLayer", "AttemptTimeoutLayer"]
