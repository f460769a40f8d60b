"""Everything that protects one endpoint, in its right order: a service, one host, one GPU."""

from __future__ import annotations

from typing import Any, Protocol

from shared.infrastructure.resilience.adaptive_bulkhead import AdaptiveBulkheadConfig
from shared.infrastructure.resilience.adaptive_timeout import (
    AdaptiveTimeoutConfig,
    AdaptiveTimeoutLayer,
)
from shared.infrastructure.resilience.bulkhead import BulkheadConfig
from shared.infrastructure.resilience.circuit_breaker import CircuitBreaker, CircuitBreakerConfig
from shared.infrastructure.resilience.circuit_layers import CircuitBreakerLayer, CircuitGate
from shared.infrastructure.resilience.clock import MONOTONIC, Clock
from shared.infrastructure.resilience.events import NO_LISTENERS, Listeners
from shared.infrastructure.resilience.health_monitor import HealthLayer, HealthMonitor
from shared.infrastructure.resilience.layer import Layer
from shared.infrastructure.resilience.limits import AdaptiveRateConfig
from shared.infrastructure.resilience.rate_limiter import RateLimitConfig, RateLimitLayer
from shared.infrastructure.resilience.timeout import AttemptTimeoutLayer


class Part(Protocol):
    """Anything that can say how it is doing."""

    def snapshot(self) -> dict[str, Any]:
        """Return its state as plain JSON types."""
        ...


def status_of(part: Part | None) -> dict[str, Any]:
    """Return the snapshot of a part; of one that is switched off, `{"enabled": False}`."""
    return {"enabled": False} if part is None else {"enabled": True, **part.snapshot()}


class EndpointGuard:
    """The per-attempt half of a stack and the primitives in it, shared by all calls to an endpoint.

    None for a config leaves that layer out.

    Args:
        name: Endpoint, used in errors and events.
        health: Monitor that ordinary traffic is reported to.
        circuit_breaker: When to stop calling.
        rate_limit: How fast to call.
        bulkhead: How many calls at once.
        attempt_timeout: Seconds one attempt may take, or how to find them out.
        clock: Source of monotonic time.
        listeners: Told of what the layers decide.
    """

    def __init__(
        self,
        name: str,
        *,
        health: HealthMonitor,
        circuit_breaker: CircuitBreakerConfig | None,
        rate_limit: RateLimitConfig | AdaptiveRateConfig | None = None,
        bulkhead: BulkheadConfig | AdaptiveBulkheadConfig | None = None,
        attempt_timeout: float | AdaptiveTimeoutConfig | None = None,
        clock: Clock = MONOTONIC,
        listeners: Listeners = NO_LISTENERS,
    ) -> None:
        self.name = name
        self.health = health
        self.breaker = (
            CircuitBreaker(name, circuit_breaker, clock=clock, listeners=listeners)
            if circuit_breaker
            else None
        )
        self.limiter = rate_limit.build(clock=clock) if rate_limit else None
        self.bulkhead = (
            bulkhead.build(clock=clock, name=name, listeners=listeners) if bulkhead else None
        )
        self._lines: list[Layer[Any, Any]] = []
        if self.limiter and rate_limit:
            self._lines.append(
                RateLimitLayer(
                    self.limiter, rate_limit.max_wait, name=name, clock=clock, listeners=listeners
                )
            )
        if self.bulkhead:
            self._lines.append(self.bulkhead.layer())
        self._innermost: list[Layer[Any, Any]] = [HealthLayer(health, clock=clock)]
        if attempt_timeout is not None:
            self._innermost.append(
                AdaptiveTimeoutLayer(attempt_timeout, name=name, clock=clock, listeners=listeners)
                if isinstance(attempt_timeout, AdaptiveTimeoutConfig)
                else AttemptTimeoutLayer(
                    attempt_timeout, name=name, clock=clock, listeners=listeners
                )
            )
        self.layers = self.layers_over(self.breaker)

    def layers_over(self, breaker: CircuitBreaker | None) -> list[Layer[Any, Any]]:
        """Return the layers with another breaker, such as that of one model, in place of its own.

        None is no breaker. All else is shared.
        """
        if breaker is None:
            return [*self._lines, *self._innermost]
        # Cheap refusals first, then the queues, and only then what a queue must not hold.
        gate, count = CircuitGate(breaker), CircuitBreakerLayer(breaker)
        return [gate, *self._lines, count, *self._innermost]

    def snapshot(self) -> dict[str, Any]:
        """Return the state of every part; a part that is switched off is `{"enabled": False}`."""
        parts = {
            "circuit_breaker": self.breaker,
            "rate_limiter": self.limiter,
            "bulkhead": self.bulkhead,
        }
        status: dict[str, Any] = {name: status_of(part) for name, part in parts.items()}
        status["health"] = self.health.snapshot()
        return status
